"""From a row to an example: token ids by the chat template, and which of them are scored.

The tokens of every assistant turn are scored, and the token that ends it. A turn starts where the prompt
of that turn ends, so a model is trained on the prompts that it is given at inference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from potstill.data import chat, policies
from potstill.data.chat import Message
from potstill.data.policies import CLOSE, OPEN, Reasoning, System
from potstill.data.render import Renderer
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.types import Example, Origin

Spans: TypeAlias = tuple[list[int], list[tuple[int, int]]]  # ids, and the half-open ranges that are scored


class Templater:
    """Turn conversations into ids with one tokenizer and one template.

    Args:
        template_text: a Jinja template instead of the tokenizer's own.
        template_kwargs: variables for the template, the same for prompts and training rows.
        system: keep | merge (into the next user turn) | drop.
        reasoning: keep (wrapped in <think> before the answer) | strip | separate (its own field).
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template_text: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        system: System = "keep",
        reasoning: Reasoning = "keep",
    ) -> None:
        self._renderer = Renderer(tokenizer, template_text, template_kwargs or {})
        self._system = system
        self._reasoning = reasoning

    @property
    def has_template(self) -> bool:
        """Whether there is a template to render conversations with."""
        try:
            return bool(self._renderer.template_text())
        except DataError:
            return False

    @property
    def default_system(self) -> str:
        """The system prompt that the template adds to conversations without one; "" for none."""
        return self._renderer.default_system if self.has_template else ""

    @property
    def fingerprint(self) -> str:
        """sha256 of template, variables and policies: what decides about ids, except for the tokenizer."""
        template = self._renderer.template_text() if self.has_template else ""
        with_tools = self._renderer.template_text(tools=True) if template else ""
        parts = [template, with_tools, self._renderer.kwargs, self._system, self._reasoning]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's first, then the tokenizer's end token."""
        stop = [self._renderer.ending.stop] if self.has_template else []
        eos = self._renderer.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*stop, *([] if eos is None else [int(eos)])]))

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """Render a prompt as text.

        Raises:
            DataError: there is no template, it refuses the conversation, or the last turn is the assistant's.
        """
        if problem := chat.problem(messages):
            raise DataError(problem, fix="Repair the row.")
        if messages[-1]["role"] == "assistant":
            raise DataError("a prompt ends with the assistant's own turn.", fix="Remove the answer.")
        return self._renderer.text(self._prepare(messages), tools or (), prompt=True)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """Render a prompt as ids; raises as `prompt_text` does."""
        ids = self._renderer.ids(self.prompt_text(messages, tools))
        if not ids:
            raise DataError("the prompt is empty.", fix="Check the row and the chat template.")
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Tokenise an answer, without special tokens."""
        return self._renderer.ids(text)

    def generated(
        self,
        row_id: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        origin: Origin,
        end: bool = True,
    ) -> Example:
        """Join the ids of prompt and answer into an example, so that no text is tokenised again.

        `end` adds what closes a turn, unless the answer already ends with a stop token.
        """
        ended = bool(completion_ids) and completion_ids[-1] in self.stop_ids
        ids = [*prompt_ids, *completion_ids, *(self._renderer.ending.ids if end and not ended else ())]
        return _example(row_id, ids, [(len(prompt_ids), len(ids))], origin)

    def encode_row(self, row: Row) -> list[Example]:
        """Make one example of a row, or one of each assistant turn where the template rewrites earlier turns.

        Raises:
            DataError: the row has no answer, or the template hides which tokens belong to it; names the row.
        """
        try:
            if row.text is not None:
                ids = self._renderer.document_ids(row.text)
                return [_example(row.id, ids, [(1, len(ids))])]
            if problem := chat.problem(row.messages) or chat.missing_answer(row.messages):
                raise DataError(problem, fix="Repair the row, or generate the answers first.")
            messages = self._prepare(row.messages)
            if whole := self._whole(messages, row.tools):
                return [_example(row.id, *whole)]
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            examples = [_example(row.id, *self._turn(messages, row.tools, turn)) for turn in turns]
            if len(examples) == 1:
                return examples
            return [replace(one, id=f"{row.id}#{n}", part_of=row.id) for n, one in enumerate(examples, 1)]
        except DataError as error:
            raise DataError(error.message, fix=error.fix, path=error.path or row.where) from error

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        if self._system == "keep":
            for role in {m["role"] for m in messages} & set(chat.SYSTEM):
                self._renderer.require_system(role)
        return policies.apply_reasoning(policies.apply_system(messages, self._system), self._reasoning)

    def _whole(self, messages: Sequence[Message], tools: Sequence[Any]) -> Spans | None:
        """Encode all turns in one row; None where a model would see them differently turn by turn."""
        text = self._renderer.text(messages, tools)
        if not self._renderer.ending.marked or not _holds_answers(messages, text):
            return None
        return self._by_marks(messages, tools) or self._by_prefixes(messages, tools, self._renderer.ids(text))

    def _by_marks(self, messages: Sequence[Message], tools: Sequence[Any]) -> Spans | None:
        """Find the turns by the template's {% generation %} marks, each with its end token."""
        marks = self._renderer.marks(messages, tools)
        if marks is None:
            return None
        ids, inside = marks
        if not _starts_with(ids, self._renderer.ids(self._renderer.text(messages[:-1], tools, prompt=True))):
            return None
        ending = list(self._renderer.ending.ids)
        spans = []
        for start, end in _runs(inside):
            stop = _last_stop(ids[start:end], self._renderer)
            if stop is not None:
                end = start + stop + 1
            elif ids[end : end + len(ending)] == ending:
                end += len(ending)
            spans.append((start, end))
        return ids[: spans[-1][1]], spans

    def _by_prefixes(self, messages: Sequence[Message], tools: Sequence[Any], ids: list[int]) -> Spans | None:
        """Find the turns by prefixes: `ids` must begin with the ids of each prompt and each finished turn."""
        render = self._renderer
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = render.ids(render.text(messages[:turn], tools, prompt=True))
            last = turn == len(messages) - 1
            finished = ids if last else render.ids(render.text(messages[: turn + 1], tools))
            if not _starts_with(ids, prompt) or not _starts_with(ids, finished):
                return None
            stop = _last_stop(finished[len(prompt) :], render)
            if stop is None:
                return None
            spans.append((len(prompt), len(prompt) + stop + 1))
        return ids[: spans[-1][1]], spans

    def _turn(self, messages: Sequence[Message], tools: Sequence[Any], turn: int) -> Spans:
        """Encode one answer after the prompt of its turn, as at inference."""
        render = self._renderer
        prompt_text = render.text(messages[:turn], tools, prompt=True)
        text = render.text(messages[: turn + 1], tools)
        answer = text.removeprefix(prompt_text)
        if answer == text or not _holds_answers(messages[turn : turn + 1], answer):
            answer = _spliced(messages[turn], prompt_text) + render.ending.text
        if not render.ending.marked:
            answer = answer.rstrip()
        prompt = render.ids(prompt_text)
        ids = render.ids(prompt_text + answer)
        if not _starts_with(ids, prompt):
            # A token would join prompt and answer; at inference a model never sees such a token.
            ids = [*prompt, *render.ids(answer)]
        if not render.ending.marked:
            return [*ids, render.ending.stop], [(len(prompt), len(ids) + 1)]
        stop = _last_stop(ids[len(prompt) :], render)
        if stop is None:
            raise DataError("the chat template does not end the answer.", fix="Name another template.")
        end = len(prompt) + stop + 1
        return ids[:end], [(len(prompt), end)]


def _spliced(message: Message, prompt: str) -> str:
    """Write the answer after a prompt, for templates that print answers differently from how models write."""
    if message.get("tool_calls"):
        raise DataError(
            "the chat template prints this tool call differently after its prompt.",
            fix="Name another template in data.template.file.",
        )
    content = message["content"]
    if "reasoning_content" in message:
        content = policies.wrapped(message["reasoning_content"], content)
    if not prompt.rstrip().endswith(OPEN):
        return content
    if CLOSE not in content:
        raise DataError(
            f"the prompt opens {OPEN}, and the answer holds no reasoning.",
            fix="Switch thinking off in data.template.kwargs, or use rows with reasoning.",
        )
    inside = content.lstrip().removeprefix(OPEN)
    return inside.lstrip() if prompt[-1].isspace() else inside


def _holds_answers(messages: Sequence[Message], text: str) -> bool:
    """Whether the text holds every answer with its reasoning."""
    return all(
        part.strip() in text
        for message in messages
        if message["role"] == "assistant" and not message.get("tool_calls")
        for part in policies.split_reasoning(message)
    )


def _last_stop(ids: Sequence[int], render: Renderer) -> int | None:
    """Find where a turn ends: at its last stop token, else at its last special token."""
    stops = [i for i, token in enumerate(ids) if token == render.ending.stop]
    stops = stops or [i for i, token in enumerate(ids) if token in render.special]
    return stops[-1] if stops else None


def _starts_with(ids: Sequence[int], prefix: Sequence[int]) -> bool:
    return list(ids[: len(prefix)]) == list(prefix)


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Find the half-open ranges of neighbouring true values."""
    edges = [i for i in range(len(flags) + 1) if (i > 0 and flags[i - 1]) != (i < len(flags) and flags[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _example(
    row_id: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], origin: Origin = "data"
) -> Example:
    scored = [False] * len(ids)
    for start, end in spans:
        # Nothing predicts the first token.
        scored[max(start, 1) : end] = [True] * (end - max(start, 1))
    return Example(row_id, tuple(ids), tuple(scored), origin)
