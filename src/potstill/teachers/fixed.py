"""A teacher with scripted logits for tests and for trying things out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from potstill.types import Batch, Dense


class FixedTeacher:
    """Says what `logits(batch)` [N, V] says."""

    fingerprint = "fixed"

    def __init__(self, logits: Callable[[Batch], Tensor]) -> None:
        self._logits = logits

    def signal(self, batch: Batch) -> Dense:
        return Dense(self._logits(batch))

    def close(self) -> None:
        return None


def build(*, logits: Callable[[Batch], Tensor]) -> FixedTeacher:
    """A teacher from a function of the batch."""
    return FixedTeacher(logits)
