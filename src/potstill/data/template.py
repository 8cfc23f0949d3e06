"""From a row to an example: the chat template, and which tokens are scored.

Scored are the tokens of every assistant turn and the token that ends it. A turn starts where the
prompt ends that a model would be given at that point, so training sees what inference sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from potstill.data import chat, policies
from potstill.data.chat import Message
from potstill.data.policies import CLOSE, OPEN, Reasoning, System
from potstill.data.render import Renderer
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.types import Example, Origin


class Templater:
    """Turns conversations into ids with one tokenizer and one template.

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
        """Whether conversations can be rendered at all."""
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
        """sha256 of everything here that changes ids, the tokenizer aside."""
        template = self._renderer.template_text() if self.has_template else ""
        with_tools = self._renderer.template_text(tools=True) if template else ""
        parts = [template, with_tools, self._renderer.kwargs, self._system, self._reasoning]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's first, then the tokenizer's own end token."""
        stop = [self._renderer.ending.stop] if self.has_template else []
        eos = self._renderer.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*stop, *([] if eos is None else [int(eos)])]))

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> str:
        """What a model is given to answer, as text.

        Raises:
            DataError: there is no template, it refuses the conversation, or nothing is asked.
        """
        if chat.flaw(messages):
            raise DataError(chat.flaw(messages), fix="Repair the row.")
        if messages[-1]["role"] == "assistant":
            raise DataError("a prompt ends with the assistant's own turn.", fix="Leave the answer away.")
        return self._renderer.text(self._prepare(messages), tools or (), ask=True)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """What a model is given to answer, as ids; raises as `prompt_text` does."""
        ids = self._renderer.ids(self.prompt_text(messages, tools))
        if not ids:
            raise DataError("the prompt is empty.", fix="Check the row and the chat template.")
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Ids of an answer that came as text, nothing added."""
        return self._renderer.ids(text)

    def append(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], end: bool = True) -> list[int]:
        """Prompt and answer as one row: ids are joined, text is never tokenised again.

        `end` adds what closes a turn, unless the answer already ends with a stop token.
        """
        ended = bool(completion_ids) and completion_ids[-1] in self.stop_ids
        return [*prompt_ids, *completion_ids, *(self._renderer.ending.ids if end and not ended else ())]

    def generated(
        self,
        row_id: str,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        origin: Origin,
        end: bool = True,
    ) -> Example:
        """The example of an answer whose ids are known."""
        ids = self.append(prompt_ids, completion_ids, end)
        return _example(row_id, ids, [(len(prompt_ids), len(ids))], origin)

    def encode_row(self, row: Row, *, origin: Origin = "data") -> list[Example]:
        """The row as one example, or one for each assistant turn where the template rewrites earlier turns.

        Raises:
            DataError: there is nothing to learn from, or it cannot be told which tokens to score; names
                the row.
        """
        try:
            if row.text is not None:
                ids = self._renderer.document_ids(row.text)
                return [_example(row.id, ids, [(1, len(ids))], origin)]
            problem = chat.flaw(row.messages) or chat.unfinished(row.messages)
            if problem:
                raise DataError(problem, fix="Repair the row, or generate the answers first.")
            messages = self._prepare(row.messages)
            whole = self._whole(messages, row.tools)
            if whole:
                return [_example(row.id, *whole, origin)]
            turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
            found = [_example(row.id, *self._turn(messages, row.tools, turn), origin) for turn in turns]
            if len(found) == 1:
                return found
            return [replace(part, id=f"{row.id}#{n}", part_of=row.id) for n, part in enumerate(found, 1)]
        except DataError as error:
            raise DataError(error.message, fix=error.fix, path=error.path or row.source or row.id) from error

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        if self._system == "keep":
            for role in {m["role"] for m in messages} & set(chat.SYSTEM):
                self._renderer.require_system(role)
        return policies.apply_reasoning(policies.apply_system(messages, self._system), self._reasoning)

    def _whole(self, messages: Sequence[Message], tools: Sequence[Any]) -> Spans | None:
        """All turns in one row, or None where that cannot be what a model sees turn by turn."""
        text = self._renderer.text(messages, tools)
        if not self._renderer.ending.marked or not _says_all(messages, text):
            return None
        return self._marked(messages, tools) or self._proven(messages, tools, self._renderer.ids(text))

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any]) -> Spans | None:
        """By the template's own {% generation %} marks, each turn with its end token."""
        marks = self._renderer.marks(messages, tools)
        if marks is None:
            return None
        ids, inside = marks
        if not _starts_with(ids, self._renderer.ids(self._renderer.text(messages[:-1], tools, ask=True))):
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

    def _proven(self, messages: Sequence[Message], tools: Sequence[Any], ids: list[int]) -> Spans | None:
        """By prefix: the ids of each prompt and of each finished turn begin the ids of the whole."""
        render = self._renderer
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = render.ids(render.text(messages[:turn], tools, ask=True))
            last = turn == len(messages) - 1
            answered = ids if last else render.ids(render.text(messages[: turn + 1], tools))
            if not _starts_with(ids, prompt) or not _starts_with(ids, answered):
                return None
            stop = _last_stop(answered[len(prompt) :], render)
            if stop is None:
                return None
            spans.append((len(prompt), len(prompt) + stop + 1))
        return ids[: spans[-1][1]], spans

    def _turn(self, messages: Sequence[Message], tools: Sequence[Any], turn: int) -> Spans:
        """One answer after the prompt of its turn, as at inference."""
        render = self._renderer
        asked = render.text(messages[:turn], tools, ask=True)
        answered = render.text(messages[: turn + 1], tools)
        answer = answered.removeprefix(asked)
        if answer == answered or not _says_all(messages[turn : turn + 1], answer):
            answer = _spliced(messages[turn], asked) + render.ending.text
        if not render.ending.marked:
            answer = answer.rstrip()
        prompt = render.ids(asked)
        ids = render.ids(asked + answer)
        if not _starts_with(ids, prompt):
            # A token would reach across the join; a model that answers never sees such a token.
            ids = [*prompt, *render.ids(answer)]
        if not render.ending.marked:
            return [*ids, render.ending.stop], [(len(prompt), len(ids) + 1)]
        stop = _last_stop(ids[len(prompt) :], render)
        if stop is None:
            raise DataError("the chat template does not end the answer.", fix="Name another template.")
        end = len(prompt) + stop + 1
        return ids[:end], [(len(prompt), end)]


Spans = tuple[list[int], list[tuple[int, int]]]  # ids, and the half-open ranges that are scored


def _spliced(message: Message, asked: str) -> str:
    """The answer to put after a prompt, for templates that print it in another way than models write it."""
    if message.get("tool_calls"):
        raise DataError(
            "the chat template prints this tool call in another way than it asks for it.",
            fix="Name another template in data.template.file.",
        )
    content = message["content"]
    if "reasoning_content" in message:
        content = policies.wrapped(message["reasoning_content"], content)
    if not asked.rstrip().endswith(OPEN):
        return content
    if CLOSE not in content:
        raise DataError(
            f"the prompt opens {OPEN}, and the answer holds no reasoning.",
            fix="Switch thinking off in data.template.kwargs, or use rows with reasoning.",
        )
    inside = content.lstrip().removeprefix(OPEN)
    return inside.lstrip() if asked[-1].isspace() else inside


def _says_all(messages: Sequence[Message], text: str) -> bool:
    """Whether the text holds every answer with its reasoning."""
    complete = True
    for message in messages:
        if message["role"] == "assistant" and not message.get("tool_calls"):
            reasoning, answer = policies.split_reasoning(message)
            complete &= reasoning in text and answer.strip() in text
    return complete


def _last_stop(ids: Sequence[int], render: Renderer) -> int | None:
    """Where a turn ends: at its last stop token, else at its last special token."""
    stops = [i for i, token in enumerate(ids) if token == render.ending.stop]
    stops = stops or [i for i, token in enumerate(ids) if token in render.special]
    return stops[-1] if stops else None


def _starts_with(ids: Sequence[int], prefix: Sequence[int]) -> bool:
    return list(ids[: len(prefix)]) == list(prefix)


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Half-open ranges of neighbouring true values."""
    edges = [i for i in range(len(flags) + 1) if (i > 0 and flags[i - 1]) != (i < len(flags) and flags[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _example(row_id: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], origin: Origin) -> Example:
    scored = [False] * len(ids)
    for start, end in spans:
        # Nothing predicts the first token.
        scored[max(start, 1) : end] = [True] * (end - max(start, 1))
    return Example(row_id, tuple(ids), tuple(scored), origin)
