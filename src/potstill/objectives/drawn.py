"""A batch's own tokens: what both models say of them at T = 1, and losses that read log q of these tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.objectives.diagnostics import require_finite
from potstill.objectives.fused import linear_loss
from potstill.objectives.terms import HIDDEN, StudentView
from potstill.signals.signal import Chunks, Signal
from potstill.signals.support import tempered
from potstill.signals.text import Text
from potstill.types import Batch, Loss

STUDENT_LP, TEACHER_LP = "student_lp", "teacher_lp"

Surrogate: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(log q now [c], rows) -> loss [c] and its derivative by log q [c]."""


@dataclass(frozen=True)
class DrawnTokens:
    """A term of value 0 whose metrics are no sums: [N] log-probabilities of the scored tokens.

    It reads them where a training step reads its loss, so both see the same logits. Without a teacher (a
    signal of text) there is no `teacher_lp`.
    """

    name: ClassVar[str] = "drawn tokens"
    needs: ClassVar[frozenset[str]] = frozenset({HIDDEN})
    totals: ClassVar[tuple[str, ...]] = ()

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """Log-probabilities over the shared ids.

        Raises:
            SignalError: the signal is not the teacher's whole distribution.
        """
        chunks = None if signal.kind == Text.kind else signal.chunks(_WHOLE, "bucket")
        rows = _Recorded(student.batch.targets, chunks)
        loss = linear_loss(
            student.hidden, student.head, rows, chunk_bytes=student.chunk_bytes, rounded=student.rounded
        )
        return Loss(loss.sum, loss.count, rows.values())

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """There is nothing that cannot be."""


class _Recorded:
    """Keeps the log-probabilities of the targets, chunk by chunk."""

    def __init__(self, targets: Tensor, chunks: Chunks | None) -> None:
        self._targets = targets
        self._chunks = chunks
        self._student: list[Tensor] = []
        self._teacher: list[Tensor] = []

    def require_rows(self, n: int) -> None:
        _require_rows(self._targets, n)

    def __call__(self, logits: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        target = self._targets[rows].unsqueeze(-1)
        if self._chunks is None:
            self._student.append(tempered(logits, 1.0).gather(1, target).squeeze(-1))
        else:
            sides = self._chunks(rows, logits).beside(logits, slice(0, logits.shape[0]), 1.0)
            self._student.append(sides.student_lp.gather(1, target).squeeze(-1))
            self._teacher.append(sides.teacher_lp.gather(1, target).squeeze(-1))
        if gradient:
            logits.zero_()
        return logits.new_zeros(logits.shape[0]), {}

    def values(self) -> dict[str, Tensor]:
        """Log-probabilities [N] by name."""
        nothing = self._targets.new_zeros(0, dtype=torch.float32)
        values = {STUDENT_LP: torch.cat(self._student) if self._student else nothing}
        if self._chunks is not None:
            values[TEACHER_LP] = torch.cat(self._teacher) if self._teacher else nothing
        return values


def when_drawn(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """log q and log p [N] of the scored tokens when they were drawn, in float64, and their owners, on the CPU.

    Raises:
        ValueError: tokens were not scored then.
    """
    if not batch.count:
        nothing = torch.zeros(0, dtype=torch.float64)
        return nothing, nothing, torch.zeros(0, dtype=torch.int64)
    if batch.student_lp is None or batch.teacher_lp is None:
        raise ValueError("the student's tokens were not scored: call train.scoring.score on them")
    student_lp, teacher_lp = (lp.cpu().double() for lp in (batch.student_lp, batch.teacher_lp))
    if bool((student_lp.isnan() | teacher_lp.isnan()).any()):
        raise ValueError("some of the student's tokens were not scored: call train.scoring.score on them")
    return student_lp, teacher_lp, batch.owners().cpu()


def drawn_loss(name: str, student: StudentView, surrogate: Surrogate) -> Loss:
    """Sum a loss of log q of each scored token over a batch, each times the batch's weight of it.

    By the logits its gradient is slope * (one-hot - softmax): that of the drawn token's log-probability alone.

    Raises:
        NotFinite: not on a GPU: a loss is not finite.
    """
    batch = student.batch
    rows = _DrawnRows(name, batch.targets, batch.weights, surrogate)
    return linear_loss(
        student.hidden, student.head, rows, chunk_bytes=student.chunk_bytes, rounded=student.rounded
    )


@dataclass(frozen=True)
class _DrawnRows:
    """The rows of `drawn_loss`."""

    name: str
    targets: Tensor  # [N]
    weights: Tensor | None  # [N]
    surrogate: Surrogate

    def require_rows(self, n: int) -> None:
        _require_rows(self.targets, n)

    def __call__(self, logits: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        column = self.targets[rows].unsqueeze(-1)
        lp = tempered(logits, 1.0)
        value, slope = self.surrogate(lp.gather(1, column).squeeze(-1), rows)
        require_finite(self.name, value, rows.start, None)
        if self.weights is not None:
            weights = self.weights[rows].to(logits.dtype)
            value, slope = value * weights, slope * weights
        if gradient:
            slope = slope.to(logits.dtype).unsqueeze(-1)
            torch.exp(lp, out=logits).mul_(-slope).scatter_add_(1, column, slope)
        return value, {}


def _require_rows(targets: Tensor, n: int) -> None:
    if n != targets.shape[0]:
        raise SignalError(f"there are {targets.shape[0]} targets, {n} positions are scored.")


def _never(student_lp: Tensor, teacher_lp: Tensor) -> Tensor:
    raise AssertionError("only log-probabilities are read")


_WHOLE = Divergence("a drawn token's log-probability", _never, has_partial=False)
