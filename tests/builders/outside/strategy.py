"""A strategy from outside the package: rows as they are, at a learning rate of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from potstill.data.batch import collate
from potstill.types import Batch, Example, Sampler

LEARNING_RATE = (3e-6, "text that the student wrote changes with every step")


class Reversed:
    def __init__(self, twice: bool) -> None:
        self.twice = twice

    def batches(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> Iterator[Batch]:
        for rows in examples:
            for _ in range(1 + self.twice):
                yield collate(list(reversed(rows)), pad_id=sampler.pad_id, packed=sampler.packed)

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return None

    def observe(self, metrics: Mapping[str, float]) -> None:
        return None


def backwards(*, twice: bool = False) -> Reversed:
    """Train on each micro-batch in reverse order, or on it twice."""
    return Reversed(twice)
