"""Answers that repeat a run of words from a held-out row, which is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.data.split import normal
from potstill.errors import RecipeError
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "contamination"
BY_DEFAULT = True
ORDER = 80
ALONE = False
LEAST = 5


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
    words: int = 13,
) -> Iterator[str]:
    """Judge by runs of words, case and spaces aside (Brown et al. 2020, arXiv:2005.14165, take 13). A run that the
    answer's own prompt holds too is an instruction that many rows share.

    Args:
        words: in a run, 5 or more.

    Raises:
        RecipeError: fewer, by which everything would be contaminated.
    """
    if words < LEAST:
        raise RecipeError(
            f"must be {LEAST} or more, not {words}.",
            path="generate.filters.contamination.words",
            fix="Fewer words in a row are common to texts that have nothing to do with each other.",
        )
    held = {run for text in context.heldout for run in _runs(text, words)}
    for answer in answers:
        shared = held.intersection(_runs(answer.text, words))
        yield LABEL if shared and shared.difference(_runs(answer.prompt, words)) else ""


def _runs(text: str, words: int) -> set[str]:
    parts = normal(text).split()
    return {" ".join(parts[i : i + words]) for i in range(len(parts) - words + 1)}
