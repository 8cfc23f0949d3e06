"""The token objective where of the teacher's part a frozen head has seen the mean alone (`potstill.signals.vector`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from potstill.models.projection import wide
from potstill.objectives.fused import linear_loss
from potstill.objectives.terms import StudentView
from potstill.signals.vector import KlVector
from potstill.types import Loss

if TYPE_CHECKING:
    from potstill.objectives.token import TokenLoss


def through_vectors(loss: TokenLoss, student: StudentView, signal: KlVector) -> Loss:
    """The objective of a batch beside vectors.

    The sweep over logits adds the student's part of the gradient, softmax / T; the teacher's follows from the mean
    logits, whose own value is counted there already. Products are not rounded: the two parts nearly cancel.

    Raises:
        SignalError: the head is not the one of the vectors, or the objective is not forward KL at their temperature.
    """
    batch, hidden = student.batch, student.hidden.to(wide(student.hidden.dtype))
    read = signal.beside(hidden, student.head)
    rowwise = loss.rowwise(read, batch.targets, batch.hard, batch.weights, metrics=student.metrics)
    out = linear_loss(hidden, student.head, rowwise, chunk_bytes=student.chunk_bytes)
    weights = 1.0 if batch.weights is None else batch.weights
    share = loss.scale * (1 - loss.ce_weight) / loss.temperature
    slope = -(share * weights * read.mean_logits()).sum()
    return replace(out, sum=out.sum + (slope - slope.detach()))
