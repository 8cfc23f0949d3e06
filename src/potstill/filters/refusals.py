"""Answers that begin with a refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.data import habits
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "refusal"
BY_DEFAULT = True
ORDER = 30
ALONE = True


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "count",
) -> Iterator[str]:
    """Judge by the first words, so that a refusal that is quoted further down is none."""
    for answer in answers:
        yield LABEL if habits.refuses(answer.text) else ""
