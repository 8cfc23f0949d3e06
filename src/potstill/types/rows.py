"""Rows as token ids, of which some are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Origin = Literal["data", "teacher", "student"]


@dataclass(frozen=True)
class Reading:
    """The same row as another model reads it. `scored[i]` says that token i is a target."""

    input_ids: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """What precedes its last answer; all of it without one."""
        return self.input_ids[: last_run(self.scored)]


@dataclass(frozen=True)
class Example:
    """One row as token ids. `scored[i]` says that token i is a target (never true at i = 0)."""

    id: str
    input_ids: tuple[int, ...]
    scored: tuple[bool, ...]
    origin: Origin = "data"
    weight: float = 1.0  # of each of its tokens' loss
    part_of: str | None = None  # the row it is a part of, where a row gives several examples
    answers: str | None = None  # the example whose prompt it answers, where the student wrote it
    share: float = 1.0  # of its conversation's scored tokens, where a template makes turns examples
    reading: Reading | None = None  # the teacher's, where it reads the row as other ids
    version: int | None = None  # optimizer steps that the student had behind it when it wrote the row
    student_lp: tuple[float, ...] | None = None  # of the scored tokens when they were drawn, at T = 1
    teacher_lp: tuple[float, ...] | None = None
    truncated: bool = False  # the student wrote as many tokens as it may, and no end token
    room: int = 0  # tokens that the student may write behind a prompt without an answer; 0 for any other row
    domain: str | None = None  # which of several teachers are asked about it, where a recipe routes rows

    @property
    def row_id(self) -> str:
        """The source row: `id` alone cannot tell sample 1 of row "a" from a row named "a#1"."""
        return self.id if self.part_of is None else self.part_of

    @property
    def asked_by(self) -> str:
        """The example whose prompt it answers: a row may give several, each a turn of its own."""
        return self.id if self.answers is None else self.answers

    @property
    def count(self) -> int:
        """Count the scored tokens."""
        return sum(self.scored)

    @property
    def width(self) -> int:
        """Count its tokens, or those of the teacher's reading where these are more."""
        return max(len(self.input_ids), 0 if self.reading is None else len(self.reading.input_ids))

    @property
    def planned(self) -> tuple[int, int]:
        """All tokens and the scored ones, with an answer of full length where the student is to write it."""
        return self.width + self.room, self.count + self.room

    @property
    def prompt(self) -> tuple[int, ...]:
        """What precedes its last answer, the last run of scored tokens; all of a row without one."""
        return self.input_ids[: last_run(self.scored)]

    def silent(self) -> Example:
        """The same row with nothing scored: a process without rows of its own still works beside the others."""
        reading = self.reading and replace(self.reading, scored=(False,) * len(self.reading.scored))
        nothing = (False,) * len(self.scored)
        return replace(self, scored=nothing, reading=reading, student_lp=None, teacher_lp=None, room=0)


def last_run(scored: Sequence[bool]) -> int:
    """Where the last run of scored tokens begins; the length where none is scored."""
    end = next((i for i in range(len(scored), 0, -1) if scored[i - 1]), None)
    if end is None:
        return len(scored)
    return next((i for i in range(end, 0, -1) if not scored[i - 1]), 0)
