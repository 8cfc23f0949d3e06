"""The contract of a signal. Each kind is one file of this folder and keeps its own requirements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.signals.support import Support, Tail


class Chunk(Protocol):
    """Some rows of a checked signal, ready to be compared with student logits."""

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """Both sides of those rows of the chunk on one support; logits are before temperature.

        Raises:
            SignalError: the signal does not hold this temperature.
        """


Chunks: TypeAlias = Callable[[slice, Tensor], Chunk]
"""(rows, student logits [c, V] of the same rows) -> those rows; refuses another vocabulary."""


class Signal(Protocol):
    """A frozen value: what a teacher says at N scored positions, in row-major order."""

    @property
    def kind(self) -> str:
        """The word that plug-ins use in SUPPORTS."""

    @property
    def estimated(self) -> bool:
        """Whether its values are unbiased estimates, which may lie below 0."""

    @property
    def rows(self) -> int:
        """N."""

    def at(self, rows: Tensor) -> Signal:
        """The same signal at some of its rows, given by a mask [N] or by indices."""

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        """Check the signal once for a batch; the result cuts it, one chunk at a time.

        Raises:
            SignalError: the signal is damaged, or this divergence cannot be read from it.
        """
