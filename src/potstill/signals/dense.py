"""The teacher's logits themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals.signal import Chunks
from potstill.signals.support import Support, Tail, tempered


@dataclass(frozen=True)
class Dense:
    """Logits of the whole vocabulary, before temperature. A student with fewer ids is given the first of them."""

    kind: ClassVar[str] = "dense"
    estimated: ClassVar[bool] = False

    logits: Tensor  # [N, V]

    @property
    def rows(self) -> int:
        return self.logits.shape[0]

    def at(self, rows: Tensor) -> Dense:
        return Dense(self.logits[rows])

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        divergence.require_support(self.kind)
        return self._chunk

    def _chunk(self, rows: slice, student_logits: Tensor) -> Dense:
        width = student_logits.shape[1]
        if self.logits.shape[1] < width:
            raise SignalError(
                f"the teacher gives {self.logits.shape[1]} logits, the student's vocabulary has {width}.",
                fix="Cut the student's to the ids that both know.",
            )
        return Dense(self.logits[rows, :width].to(student_logits.dtype))

    def mass_beyond(self, vocabulary: int, rows: slice) -> Tensor | None:
        """The probability [c] of ids from `vocabulary` on, at T = 1: what a cut leaves out. None without such ids."""
        if self.logits.shape[1] <= vocabulary:
            return None
        return tempered(self.logits[rows], 1.0)[:, vocabulary:].exp().sum(-1)

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """The whole vocabulary."""
        student_lp = tempered(student_logits, temperature)
        return Support(student_lp, tempered(self.logits[rows], temperature), student_lp)
