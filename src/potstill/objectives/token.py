"""The token objective: (1 - w) T^k D(teacher, student; T) + w CE, summed over scored tokens.

k is the divergence's temperature power (2 for locally quadratic ones: Hinton, Vinyals & Dean 2015,
arXiv:1503.02531) and applies only when a hard-label term is mixed in, to keep their balance; without
one the raw divergence is minimised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from potstill.errors import SignalError, TrainingStopped
from potstill.objectives.fused import linear_loss
from potstill.objectives.plugins import Divergence, TokenWeight, Weigh
from potstill.objectives.rows import TokenRows
from potstill.objectives.terms import HIDDEN, StudentView
from potstill.signals.signal import Signal
from potstill.signals.support import Tail
from potstill.types import Loss

__all__ = ["Divergence", "TokenLoss", "TokenWeight", "Weigh"]


@dataclass(frozen=True)
class TokenLoss:
    """The settings of the objective at one moment (schedules are resolved by who calls).

    Args:
        divergence: what compares the two distributions.
        temperature: T > 0 of the divergence, for both sides.
        ce_weight: w in [0, 1], the share of the hard-label term.
        tail: how stored top-k targets treat the ids that were not stored.
        weigh: weights of the tokens, from both log-probabilities and the places in the answers.
        balanced: T^k also at a share of 0, for a schedule that passes through it.
    """

    divergence: Divergence
    temperature: float = 1.0
    ce_weight: float = 0.0
    tail: Tail = "bucket"
    weigh: Weigh | None = None
    balanced: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({HIDDEN})

    @property
    def name(self) -> str:
        return self.divergence.name

    @property
    def scale(self) -> float:
        """T^k beside a hard-label term, else 1."""
        mixes = self.balanced or self.ce_weight > 0
        return self.temperature**self.divergence.temperature_power if mixes else 1.0

    @property
    def totals(self) -> tuple[str, ...]:
        """What is summed besides the loss without asking for metrics, however few tokens there are."""
        named = {"divergence": self.ce_weight < 1, "cross_entropy": self.ce_weight > 0}
        return tuple(name for name, there in (named | {"weight": self.weigh is not None}).items() if there)

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """The objective on a batch, as a term of a training step."""
        batch = student.batch
        place = batch.places()[0] if self.weigh is not None else None
        rowwise = self.rowwise(
            signal, batch.targets, batch.hard, batch.weights, place, metrics=student.metrics
        )
        return linear_loss(student.hidden, student.head, rowwise, chunk_bytes=student.chunk_bytes)

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """Refuse a sum below zero of a divergence that cannot be.

        Raises:
            TrainingStopped: it is below -1e-6 nats per token.
        """
        lowest = sums.get("divergence", 0.0) / max(1, tokens)
        if self.divergence.vanishes and self.tail != "truncate" and lowest < -1e-6:
            raise TrainingStopped(
                f"{self.name} is {lowest:.3g} nats per token, which no divergence can be.",
                fix="This is a fault of the signal or of the divergence; run potstill check.",
            )

    def rowwise(
        self,
        signal: Signal,
        targets: Tensor | None = None,
        hard: Tensor | None = None,
        weights: Tensor | None = None,
        place: Tensor | None = None,
        *,
        metrics: bool = False,
    ) -> TokenRows:
        """The loss of a chunk of student logits against the same rows of the signal.

        Args:
            signal: the teacher's, N rows.
            targets: [N] ids; needed with a hard-label term and for `metrics`.
            hard: [N] bool; cross-entropy counts only there (never on the student's own samples).
            weights: [N] of each token's loss.
            place: [N] of each token in its answer; needed with `weigh`.
            metrics: also sum cross-entropy, entropies, agreement and acceptance.

        Raises:
            SignalError: the divergence does not support this kind of signal, or targets are none.
            NotFinite: from the call, not on a GPU: a target is impossible, or something is NaN.
        """
        teacher = None if self.ce_weight == 1.0 else signal.prepared(self.divergence, self.tail)
        if self.ce_weight and targets is None:
            raise SignalError("a hard-label term needs target ids.", fix="Pass targets, or ce_weight 0.")
        if isinstance(self.weigh, TokenWeight) and not self.weigh.reads(signal.kind):
            raise SignalError(
                f"the token weight {self.weigh.name} cannot be read from {signal.kind} signals.",
                fix="Choose another token weight, or a signal with the teacher's own probabilities.",
            )
        if self.weigh is not None and (teacher is None or place is None):
            raise SignalError(
                "token weights need the teacher's distribution and each token's place.",
                fix="Pass place, and a ce_weight below 1.",
            )
        counts = [t.shape[0] for t in (targets, hard, weights, place) if t is not None]
        if teacher is not None:
            counts.insert(0, signal.rows)
        if not (metrics or self.ce_weight):
            targets = None
        return TokenRows(self, teacher, targets, hard, weights, place, metrics, tuple(counts))
