"""Answers that repeat themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.data import habits
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "repeats itself"
BY_DEFAULT = True
ORDER = 40
ALONE = True


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
) -> Iterator[str]:
    """Judge by word 4-grams: half of them are the same one, or four of five are repeats, in 32 words or more."""
    for answer in answers:
        yield LABEL if habits.loops(answer.text) else ""
