"""Answers that stand there already, word for word, for the same prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.data.split import normal
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "duplicate"
BY_DEFAULT = True
ORDER = 90
ALONE = False


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
) -> Iterator[str]:
    """Judge by prompt and answer together, case and spaces aside: the first one stays. One answer to many prompts,
    as a label is, is no duplicate."""
    seen: set[tuple[str, str]] = set()
    for answer in answers:
        pair = normal(answer.prompt), normal(answer.text)
        yield LABEL if pair in seen else ""
        seen.add(pair)
