"""Which ids of a conversation are scored: its answers, each with the token that ends it.

An answer starts where the prompt of its turn ends, so a model is trained on the prompts that it is given at
inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from potstill.data import policies
from potstill.data.policies import CLOSE, OPEN
from potstill.data.render import Renderer
from potstill.data.row import Message
from potstill.errors import DataError
from potstill.types import Example, Origin

Spans: TypeAlias = tuple[list[int], list[tuple[int, int]]]  # ids, and the half-open ranges that are scored


def by_marks(render: Renderer, messages: Sequence[Message], tools: Sequence[Any]) -> Spans | None:
    """Find the turns by the template's {% generation %} marks, each with its end token.

    None without marks, or where a model would see the turns differently one by one.
    """
    marked = render.marks(messages, tools)
    thoughtful = any(m.get("tool_calls") and policies.split_reasoning(m)[0] for m in messages)
    if marked is None or not render.ending.marked or thoughtful:
        return None
    ids, marks, said = marked
    prompt_text = render.chat.text(messages[:-1], tools, prompt=True)
    prompt = render.ids(prompt_text)
    if policies.block_of(prompt_text):
        return None
    # Marks may hold the turn's header, or leave out an empty block of thoughts before the answer.
    begins = ids[: len(prompt)] == prompt and any(start == len(prompt) for start, _ in marks)
    if not begins or not _holds_answers(messages, said):
        return None
    ending = list(render.ending.ids)
    spans = []
    for start, end in marks:
        stop = render.end_of_turn(ids[:end], start)
        if stop is None and ids[end : end + len(ending)] == ending:
            stop = end + len(ending)
        spans.append((start, stop or end))
    return ids[: spans[-1][1]], spans


def of_turn(render: Renderer, messages: Sequence[Message], tools: Sequence[Any]) -> Spans:
    """Encode the last answer after the prompt of its turn, as at inference."""
    prompt_text, answer = texts(render, messages, tools)
    policies.require_one_block(prompt_text, answer)
    if not render.ending.marked:
        answer = answer.rstrip()
    prompt = render.ids(prompt_text)
    ids = render.ids(prompt_text + answer)
    if ids[: len(prompt)] != prompt:
        # A token would join prompt and answer; at inference a model never sees such a token.
        ids = [*prompt, *render.ids(answer)]
    if not render.ending.marked:
        ids.append(render.ending.stop)
    end = render.end_of_turn(ids, len(prompt))
    if end is None:
        raise DataError("the chat template does not end the answer.", fix="Name another template.")
    return ids[:end], [(len(prompt), end)]


def texts(render: Renderer, messages: Sequence[Message], tools: Sequence[Any]) -> tuple[str, str]:
    """The prompt of the last answer, and the answer with what ends it."""
    prompt = render.chat.text(messages[:-1], tools, prompt=True)
    whole = render.chat.text(messages, tools)
    answer = whole.removeprefix(prompt)
    if answer == whole or not _holds_answers(messages[-1:], answer):
        answer = _spliced(messages[-1], prompt) + render.ending.text
    return prompt, answer


def _spliced(message: Message, prompt: str) -> str:
    """Write the answer after a prompt, for templates that print answers differently from how models write."""
    content = policies.wrap(message.get("reasoning_content", ""), message["content"])
    if policies.block_of(prompt) == CLOSE:
        policies.require_one_block(prompt, content)
    if message.get("tool_calls"):
        raise DataError(
            "the chat template prints this tool call differently after its prompt, or without its reasoning.",
            fix="Name another template in data.template.file.",
        )
    if not prompt.rstrip().endswith(OPEN):
        return content
    inside = content.lstrip().removeprefix(OPEN)
    return inside.lstrip() if prompt[-1].isspace() else inside


def _holds_answers(messages: Sequence[Message], text: str) -> bool:
    """Whether the text holds every answer with its reasoning, one after the other."""
    place = 0
    for message in messages:
        if message["role"] != "assistant":
            continue
        for part in map(str.strip, policies.split_reasoning(message)):
            start = text.find(part, place)
            if start < 0:
                return False
            place = start + len(part)
    return True


def example_of(
    row_id: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], origin: Origin = "data"
) -> Example:
    scored = [False] * len(ids)
    for start, end in spans:
        # Nothing predicts the first token.
        scored[max(start, 1) : end] = [True] * (end - max(start, 1))
    return Example(row_id, tuple(ids), tuple(scored), origin)
