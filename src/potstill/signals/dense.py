"""The teacher's logits themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from potstill.errors import SignalError
from potstill.signals.signal import Comparison, require_supported
from potstill.signals.support import Support, Tail, tempered


@dataclass(frozen=True)
class Dense:
    """Logits of the whole vocabulary, before temperature."""

    kind: ClassVar[str] = "dense"
    estimated: ClassVar[bool] = False

    logits: Tensor  # [N, V]

    @property
    def rows(self) -> int:
        return self.logits.shape[0]

    def prepared(self, divergence: Comparison, tail: Tail) -> Dense:
        require_supported(self.kind, divergence)
        return self

    def chunk(self, rows: slice, student_logits: Tensor) -> Dense:
        """Those rows, cut to the shared vocabulary, in the student's dtype."""
        width = student_logits.shape[1]
        if self.logits.shape[1] < width:
            raise SignalError(
                f"the teacher gives {self.logits.shape[1]} logits, the student's vocabulary has {width}.",
                fix="Cut the student's to the ids that both know.",
            )
        return Dense(self.logits[rows, :width].to(student_logits.dtype))

    def beside(
        self, student_logits: Tensor, rows: slice, temperature: float, tail: Tail = "bucket"
    ) -> Support:
        """The whole vocabulary.

        Raises:
            SignalError: the widths differ.
        """
        teacher_logits = self.logits[rows]
        if student_logits.shape != teacher_logits.shape:
            raise SignalError(
                f"student logits are {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}",
                fix="Cut both to the shared vocabulary first.",
            )
        student_lp = tempered(student_logits, temperature)
        return Support(student_lp, tempered(teacher_logits, temperature), student_lp)
