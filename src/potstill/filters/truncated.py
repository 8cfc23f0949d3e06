"""Answers that the limit of tokens cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.filters._candidate import Candidate, FilterContext

LABEL = "cut off at the limit of tokens"
BY_DEFAULT = True
ORDER = 20
ALONE = True


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
) -> Iterator[str]:
    """Judge by how the answer ended; where it is kept nevertheless, it teaches no end."""
    for answer in answers:
        yield LABEL if answer.finish == "length" else ""
