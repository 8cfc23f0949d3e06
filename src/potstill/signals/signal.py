"""The contract of a signal. Each kind is one file of this folder and keeps its own requirements."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from potstill.errors import SignalError
from potstill.signals.support import Support, Tail


class Comparison(Protocol):
    """What a signal may ask of the divergence that reads it."""

    @property
    def name(self) -> str: ...

    @property
    def supports(self) -> frozenset[str]: ...  # kinds of signal

    @property
    def vanishes(self) -> bool: ...  # zero at equality

    @property
    def linear(self) -> bool: ...  # in the teacher, up to a constant


class Signal(Protocol):
    """A frozen value: what a teacher says at N scored positions, in row-major order."""

    kind: ClassVar[str]  # the word that plug-ins use in SUPPORTS
    estimated: ClassVar[bool]  # its values are unbiased estimates, which may lie below 0

    @property
    def rows(self) -> int:
        """N."""

    def prepared(self, divergence: Comparison, tail: Tail) -> Prepared:
        """Check the signal once for a batch and make what its chunks share.

        Raises:
            SignalError: the signal is damaged, or this divergence cannot be read from it.
        """


class Prepared(Protocol):
    """A signal that is checked."""

    def chunk(self, rows: slice, student_logits: Tensor) -> Chunk:
        """Those rows, for student logits [c, V] of the same rows.

        Raises:
            SignalError: the vocabularies disagree.
        """


class Chunk(Protocol):
    """Some rows of a signal, ready to stand beside student logits."""

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """Both sides of those rows of the chunk on one support; logits are before temperature.

        Raises:
            SignalError: the signal does not hold this temperature.
        """


def require_supported(kind: str, divergence: Comparison) -> None:
    """Refuse a divergence that is not right for this kind of signal.

    Raises:
        SignalError: names the kinds that it supports.
    """
    if kind not in divergence.supports:
        able = ", ".join(sorted(divergence.supports))
        raise SignalError(
            f"{divergence.name} does not support {kind} signals, only: {able}.",
            fix="Choose another divergence, or a signal that it supports.",
        )
