"""From a row to an example: token ids by the chat template, and which of them are scored.

The tokens of every assistant turn are scored, and the token that ends it. A turn starts where the prompt
of that turn ends, so a model is trained on the prompts that it is given at inference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from potstill.data import policies
from potstill.data.ledger import ledger_of
from potstill.data.policies import CLOSE, OPEN, Reasoning, System
from potstill.data.render import Renderer
from potstill.data.row import Message, Row, role_problem
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
        end_ids: ids that end the model's answers beside the template's and the tokenizer's.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template_text: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        system: System = "keep",
        reasoning: Reasoning = "keep",
        end_ids: Sequence[int] = (),
    ) -> None:
        self._renderer = Renderer(tokenizer, template_text, template_kwargs or {})
        self._system = system
        self._reasoning = reasoning
        self._end_ids = tuple(end_ids)
        self._printed: set[str] = set()  # structures of conversations that the template prints whole

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
        return self._renderer.default_system

    @property
    def fingerprint(self) -> str:
        """sha256 of template, variables and policies: what decides about ids, except for the tokenizer."""
        template = self._renderer.template_text() if self.has_template else ""
        with_tools = self._renderer.template_text(tools=True) if template else ""
        parts = [template, with_tools, self._renderer.kwargs, self._system, self._reasoning]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's first, then the tokenizer's end token and the model's."""
        stop = [self._renderer.ending.stop] if self.has_template else []
        eos = self._renderer.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*stop, *([] if eos is None else [int(eos)]), *self._end_ids]))

    def prompt_text(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> str:
        """Render a prompt as text.

        Raises:
            DataError: there is no template, it refuses the conversation, or the last turn is the assistant's.
        """
        if problem := role_problem(messages):
            raise DataError(problem, fix="Repair the row.")
        if messages[-1]["role"] == "assistant":
            raise DataError("a prompt ends with the assistant's own turn.", fix="Remove the answer.")
        prepared = self._prepare(messages)
        self._require_printed(prepared, tools, prompt=True)
        return self._renderer.text(prepared, tools, prompt=True)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
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
        with row.place_in_errors():
            if row.text is not None:
                ids = self._renderer.document_ids(row.text)
                return [_example(row.id, ids, [(1, len(ids))])]
            problem = role_problem(row.messages)
            if not problem and (last := row.messages[-1]["role"]) != "assistant":
                problem = f"it needs an assistant turn at its end; its last turn is by the {last}."
            if problem:
                raise DataError(problem, fix="Repair the row, or generate the answers first.")
            messages = self._prepare(row.messages)
            self._require_printed(messages, row.tools)
            wanted = [m.get("trained", True) for m in row.messages if m["role"] == "assistant"]
            marked = self._by_marks(messages, row.tools)
            if marked and (all(wanted) or len(marked[1]) == len(wanted)):
                ids, spans = marked
                return [_example(row.id, ids, list(itertools.compress(spans, wanted)))]
            turns = [
                self._turn(messages, row.tools, turn)
                for turn, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
            whole = turns[-1][0]
            trained = list(itertools.compress(enumerate(turns, 1), wanted))
            if not trained or all(whole[: len(ids)] == ids for ids, _ in turns):
                return [_example(row.id, whole, [span for _, (_, spans) in trained for span in spans])]
            return [
                replace(_example(f"{row.id}#{number}", *turn), part_of=row.id) for number, turn in trained
            ]

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        if self._system == "keep":
            for message in messages:
                if problem := self._renderer.system_problems.get(message["role"]):
                    raise DataError(
                        f"the chat template {problem}.",
                        fix="Use system: merge to put it into the first user turn, or system: drop.",
                    )
        messages = [self._bare(message) for message in messages]
        return policies.apply_reasoning(policies.apply_system(messages, self._system), self._reasoning)

    def _bare(self, message: Message) -> Message:
        """A turn without its mark of training, and an answer without the end token that the template adds."""
        bare = {key: value for key, value in message.items() if key != "trained"}
        if message["role"] == "assistant":
            bare["content"] = self._renderer.without_end(message["content"])
            if message["content"].strip() and not bare["content"].strip() and not message.get("tool_calls"):
                raise DataError(
                    "an answer is nothing but an end token.", fix="Repair the row, or leave it out."
                )
        return bare

    def require_printed(self, row: Row) -> None:
        """Refuse a conversation of which the template leaves something out.

        Raises:
            DataError: names the row and what is left out.
        """
        if row.text is None and self.has_template:
            with row.place_in_errors():
                self._require_printed(self._prepare(row.messages), row.tools)

    def _require_printed(
        self, messages: Sequence[Message], tools: Sequence[Any], *, prompt: bool = False
    ) -> None:
        ledger = ledger_of(messages, tools)
        structure = json.dumps([prompt, ledger.messages, ledger.tools], default=str)
        if structure in self._printed:
            return
        try:
            text = self._renderer.text(ledger.messages, ledger.tools, prompt=prompt)
        except DataError:
            return  # the row's own rendering says why
        missing = ledger.missing(text)
        if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
            # Where it leaves out the answer itself, the answer is written behind its prompt.
            missing = [part for part in missing if part != "an answer"]
        if missing:
            raise DataError(
                f"the chat template prints nothing of {', '.join(missing)}.",
                fix="Name a template that does in data.template.file, or leave these rows out.",
            )
        self._printed.add(structure)

    def _by_marks(self, messages: Sequence[Message], tools: Sequence[Any]) -> Spans | None:
        """Find the turns by the template's {% generation %} marks, each with its end token.

        None without marks, or where a model would see the turns differently one by one.
        """
        render = self._renderer
        marked = render.marks(messages, tools)
        thoughtful = any(m.get("tool_calls") and policies.split_reasoning(m)[0] for m in messages)
        if marked is None or not render.ending.marked or thoughtful:
            return None
        ids, marks, said = marked
        prompt_text = render.text(messages[:-1], tools, prompt=True)
        prompt = render.ids(prompt_text)
        if policies.block_of(prompt_text):
            return None
        if ids[: len(prompt)] != prompt or not _holds_answers(messages, said):
            return None
        ending = list(render.ending.ids)
        spans = []
        for start, end in marks:
            stop = render.end_of_turn(ids[:end], start)
            if stop is None and ids[end : end + len(ending)] == ending:
                stop = end + len(ending)
            spans.append((start, stop or end))
        return ids[: spans[-1][1]], spans

    def _turn(self, messages: Sequence[Message], tools: Sequence[Any], turn: int) -> Spans:
        """Encode one answer after the prompt of its turn, as at inference."""
        render = self._renderer
        if messages[turn].get("tool_calls"):
            self._require_printed(messages[: turn + 1], tools)
        prompt_text = render.text(messages[:turn], tools, prompt=True)
        text = render.text(messages[: turn + 1], tools)
        answer = text.removeprefix(prompt_text)
        if answer == text or not _holds_answers(messages[turn : turn + 1], answer):
            answer = _spliced(messages[turn], prompt_text) + render.ending.text
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


def _example(
    row_id: str, ids: Sequence[int], spans: Sequence[tuple[int, int]], origin: Origin = "data"
) -> Example:
    scored = [False] * len(ids)
    for start, end in spans:
        # Nothing predicts the first token.
        scored[max(start, 1) : end] = [True] * (end - max(start, 1))
    return Example(row_id, tuple(ids), tuple(scored), origin)
