"""From a row to an example: token ids by the chat template, and which of them are scored.

The tokens of every assistant turn are scored, and the token that ends it. A turn starts where the prompt
of that turn ends, so a model is trained on the prompts that it is given at inference.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from potstill.data import policies, spans
from potstill.data.chat_template import ChatTemplate
from potstill.data.ledger import Account, Ledger, Part, ledger_of
from potstill.data.policies import Reasoning, System
from potstill.data.render import Renderer
from potstill.data.row import Message, Row, require_answer, role_problem
from potstill.data.spans import example_of
from potstill.errors import DataError, ModelError
from potstill.types import Example, Origin

_SAMPLE = "What is 2 + 2?\n  Ça fait 4: naïve, 123.45 €"


class Templater:
    """Turn conversations into ids with one tokenizer and one template.

    Args:
        template_text: a Jinja template instead of the tokenizer's own.
        template_kwargs: variables for the template, the same for prompts and training rows.
        system: keep | merge (into the next user turn) | drop.
        reasoning: keep (wrapped in <think> before the answer) | strip | separate (its own field).
        end_ids: ids that end the model's answers beside the template's and the tokenizer's.
        now: the date and time that the template prints, where it prints one; the present if not given.
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
        now: datetime | None = None,
    ) -> None:
        self._chat = ChatTemplate(tokenizer, template_text, template_kwargs or {}, now)
        self._renderer = Renderer(tokenizer, self._chat)
        self._system = system
        self._reasoning = reasoning
        self._end_ids = tuple(end_ids)
        self._printed: set[str] = set()  # structures of conversations that the template prints whole
        self._texts: dict[str, tuple[str, str]] = {}  # what is rendered of a structure, and what is scored

    @property
    def has_template(self) -> bool:
        """Whether there is a template to render conversations with."""
        try:
            return bool(self._chat.source())
        except DataError:
            return False

    def require_bounded(self, where: str) -> None:
        """Refuse a template, named by `where`, that never ends; raises as `trial.require_bounded` does."""
        if self.has_template:
            self._chat.require_bounded(where)

    @property
    def dated(self) -> bool:
        """Whether the template prints the date or the time."""
        return self.has_template and self._chat.dated

    @property
    def default_system(self) -> str:
        """The system prompt that the template adds to conversations without one; "" for none."""
        return self._chat.default_system

    @property
    def fingerprint(self) -> str:
        """sha256 of template, variables and policies: what decides about ids, except for the tokenizer."""
        template = self._chat.source() if self.has_template else ""
        with_tools = self._chat.source(tools=True) if template else ""
        parts = [template, with_tools, self._chat.kwargs, self._system, self._reasoning]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @cached_property
    def sample(self) -> tuple[str | Example, ...]:
        """A few conversations as prompts and as examples: templates of one text differ where they print
        special tokens that do. A conversation that cannot be read is left out.
        """
        system: Message = {"role": "system", "content": _SAMPLE}
        asked: Message = {"role": "user", "content": _SAMPLE}
        answer: Message = {"role": "assistant", "content": _SAMPLE}
        read: list[str | Example] = []
        for talk in (asked, answer), (system, asked, answer), (asked, answer, asked, answer):
            with suppress(DataError, ModelError):
                read += [self.prompt_text(talk[:-1]), *self.encode_row(Row("sample", talk))]
        return tuple(read)

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
        return self._chat.text(prepared, tools, prompt=True)

    def conversation(self, messages: Sequence[Message]) -> list[Message]:
        """The turns as the policies leave them, for a model that is given no rendered text."""
        bare = [self._bare(message) for message in messages]
        return policies.apply_reasoning(policies.apply_system(bare, self._system), self._reasoning)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """Render a prompt as ids; raises as `prompt_text` does."""
        ids = self._renderer.ids(self.prompt_text(messages, tools))
        if not ids:
            raise DataError("the prompt is empty.", fix="Check the row and the chat template.")
        return ids

    def token(self, index: int) -> str:
        """How an id is written in the tokenizer's vocabulary."""
        return str(self._renderer.tokenizer.convert_ids_to_tokens(index))

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
        return example_of(row_id, ids, [(len(prompt_ids), len(ids))], origin)

    def encode_row(self, row: Row) -> list[Example]:
        """Make one example of a row, or one of each assistant turn where the template rewrites earlier turns.

        Raises:
            DataError: the row has no answer, or the template hides which tokens belong to it; names the row.
        """
        with row.place_in_errors():
            if row.text is not None:
                ids = self._renderer.document_ids(row.text)
                return [example_of(row.id, ids, [(1, len(ids))])]
            require_answer(row.messages)
            messages = self._prepare(row.messages)
            self._require_printed(messages, row.tools)
            wanted = [m.get("trained", True) for m in row.messages if m["role"] == "assistant"]
            marked = spans.by_marks(self._renderer, messages, row.tools)
            if marked and (all(wanted) or len(marked[1]) == len(wanted)):
                ids, answers = marked
                return [example_of(row.id, ids, list(itertools.compress(answers, wanted)))]
            turns = [
                self._turn(messages, row.tools, turn)
                for turn, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
            whole = turns[-1][0]
            trained = list(itertools.compress(enumerate(turns, 1), wanted))
            if not trained or all(whole[: len(ids)] == ids for ids, _ in turns):
                return [example_of(row.id, whole, [span for _, (_, answers) in trained for span in answers])]
            return [
                replace(example_of(f"{row.id}#{number}", *turn), part_of=row.id) for number, turn in trained
            ]

    def _prepare(self, messages: Sequence[Message]) -> list[Message]:
        if self._system == "keep":
            for message in messages:
                if problem := self._chat.system_problems.get(message["role"]):
                    raise DataError(
                        f"the chat template {problem}.",
                        fix="Use system: merge to put it into the first user turn, or system: drop.",
                    )
        return self.conversation(messages)

    def answer_text(self, message: Message) -> str:
        """An answer's text with its reasoning where the policy keeps it, "" where the policy leaves nothing."""
        try:
            (answer,) = policies.apply_reasoning([message], self._reasoning)
        except DataError:
            return ""
        return str(answer["content"]).strip()

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
            text = self._chat.text(ledger.messages, ledger.tools, prompt=prompt)
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

    def accounts(self, row: Row, *, asked: bool = False) -> list[Account]:
        """What becomes of each part of a row: as an example, or as a prompt where a model is `asked`.

        Raises:
            DataError: the template refuses the conversation, or it has no answer and no model is `asked`.
        """
        if row.text is not None:
            return [Account(Part.of(1, "a text", row.text), rendered=True, scored=not asked)]
        ledger = ledger_of(row.messages, row.tools)
        structure = json.dumps([asked, ledger.messages, ledger.tools], default=str)
        if structure not in self._texts:
            self._texts[structure] = self._texts_of(ledger, asked)
        rendered, scored = self._texts[structure]
        return [Account(part, word in rendered, word in scored) for word, part in ledger.parts.items()]

    def _texts_of(self, ledger: Ledger, asked: bool) -> tuple[str, str]:
        """What is rendered of a conversation, and what of it is scored."""
        messages, tools = ledger.messages, ledger.tools
        if asked:
            return self.prompt_text(Row("", tuple(messages)).prompt, tools), ""
        require_answer(messages)
        prepared = self._prepare(messages)
        ends = [end for end, message in enumerate(prepared, 1) if message["role"] == "assistant"]
        turns = [spans.texts(self._renderer, prepared[:end], tools) for end in ends]
        wanted = [m.get("trained", True) for m in messages if m["role"] == "assistant"]
        whole = "".join(turns[-1])
        one_row = all(whole.startswith("".join(turn).rstrip()) for turn in turns) or not any(wanted)
        trained = list(itertools.compress(turns, wanted))
        rendered = [whole] if one_row else ["".join(turn) for turn in trained]
        return "\n".join(rendered), "\n".join(answer for _, answer in trained)

    def _turn(self, messages: Sequence[Message], tools: Sequence[Any], turn: int) -> spans.Spans:
        """Encode one answer after the prompt of its turn."""
        if messages[turn].get("tool_calls"):
            self._require_printed(messages[: turn + 1], tools)
        return spans.of_turn(self._renderer, messages[: turn + 1], tools)
