"""A teacher with scripted logits for tests and for trying things out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from potstill.signals.dense import Dense
from potstill.types import Batch


class FixedTeacher:
    """Says what `logits(batch)` [N, V] says."""

    name = fingerprint = "fixed"
    provides = frozenset({"dense"})
    reads: Any = None

    def __init__(self, logits: Callable[[Batch], Tensor]) -> None:
        self._logits = logits

    def signal(self, batch: Batch) -> Dense:
        return Dense(self._logits(batch))

    def close(self) -> None:
        return None


def build(context: Any = None, *, logits: Callable[[Batch], Tensor]) -> FixedTeacher:
    """A teacher from a function of the batch."""
    return FixedTeacher(logits)
