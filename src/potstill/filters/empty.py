"""Answers without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.filters._candidate import Candidate, FilterContext

LABEL = "empty answer"
BY_DEFAULT = True
ORDER = 10
ALONE = True


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
) -> Iterator[str]:
    """Judge by the text without its spaces. An empty answer is never trained on, whatever the action says."""
    for answer in answers:
        yield "" if answer.text.strip() else LABEL
