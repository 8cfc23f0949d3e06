"""A strategy from outside the package: few rows of each micro-batch, at a learning rate of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from potstill.data.batch import collate
from potstill.types import Batch, Example, Sampler, Strategy

LEARNING_RATE = (3e-6, "text that the student wrote changes with every step")


class First(Strategy):
    def __init__(self, count: int) -> None:
        self.count = count

    def batches(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> Iterator[Batch]:
        for rows in examples:
            yield collate(rows[: self.count], pad_id=sampler.pad_id, packed=sampler.packed)


def first_rows(*, count: int = 1) -> First:
    """Train on the first rows of each micro-batch alone."""
    return First(count)
