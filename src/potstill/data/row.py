"""One row, whatever file it came from: a conversation or plain text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from potstill.errors import DataError

Message: TypeAlias = dict[str, Any]
Messages: TypeAlias = tuple[Message, ...]

SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant", "tool")


@dataclass(frozen=True)
class Row:
    """One row: a conversation, or plain text.

    `id` comes from the file, else it is a hash of the content, so that it does not depend on the order of
    rows. `extra` holds the columns that potstill does not read; `source` is file:line.
    """

    id: str
    messages: Messages = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    teacher_turns: Messages = ()  # what the teacher is asked, where it is asked in other words than the student
    own_words: str | None = None  # the file's own opening, where the recipe writes the prompts

    @property
    def for_teacher(self) -> Row:
        """The row's prompt as the teacher is given it."""
        return replace(self, messages=self.teacher_turns) if self.teacher_turns else self

    @property
    def where(self) -> str:
        """The place to name in messages: file:line, else the id."""
        return self.source or self.id

    @property
    def prompt(self) -> Messages:
        """What a model answers: the conversation without a final assistant turn."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            return self.messages[:-1]
        return self.messages

    @property
    def gold(self) -> Message | None:
        """The final answer that the row brings along; None without one, or where it is marked not to be trained
        on."""
        last = self.messages[-1] if self.messages else {"role": ""}
        wanted = last["role"] == "assistant" and last.get("trained", True) and last["content"].strip()
        return last if wanted else None

    @property
    def opening(self) -> Messages:
        """The turns before the assistant's first."""
        return tuple(itertools.takewhile(lambda message: message["role"] != "assistant", self.messages))

    @property
    def has_system(self) -> bool:
        """Whether it brings a system prompt along."""
        return any(message["role"] in SYSTEM for message in self.messages)

    @property
    def asked(self) -> Messages:
        """The turns before the assistant's first that is trained on: `trained: False` marks the others."""
        turns = self.messages
        answers = (i for i, m in enumerate(turns) if m["role"] == "assistant" and m.get("trained", True))
        return turns[: next(answers, len(turns))]

    @property
    def prompt_text(self) -> str:
        """The text of the opening (all of a text row), by which prompts are compared: as the file has it."""
        if self.own_words is not None:
            return self.own_words
        if self.text is not None:
            return self.text
        return "\n".join(message["content"] for message in self.opening)

    @contextmanager
    def place_in_errors(self) -> Iterator[None]:
        """Add the row's place to a DataError that has none."""
        try:
            yield
        except DataError as error:
            raise DataError(error.message, fix=error.fix, path=error.path or self.where) from error


def role_problem(messages: Sequence[Message]) -> str:
    """Say in one sentence why no template can render the conversation; "" when the roles are in order."""
    if not messages:
        return "the conversation is empty."
    roles = [message["role"] for message in messages]
    turns = [role for role in roles if role not in SYSTEM]
    if not turns:
        return "the conversation holds a system prompt only."
    if turns[0] == "assistant":
        return "the conversation starts with an assistant turn; its prompt is missing."
    if ("assistant", "assistant") in itertools.pairwise(roles):
        return "two assistant turns stand in a row."
    return ""


def weight_in(value: object) -> float | None:
    """The weight that a column holds: a number from 0 up, also as text, which is how csv holds it; else None."""
    weight = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            weight = float(value)
    return weight if 0 <= weight < math.inf else None


def require_answer(messages: Sequence[Message]) -> None:
    problem = role_problem(messages)
    if not problem and (last := messages[-1]["role"]) != "assistant":
        problem = f"it needs an assistant turn at its end; its last turn is by the {last}."
    if problem:
        raise DataError(problem, fix="Repair the row, or generate the answers first.")
