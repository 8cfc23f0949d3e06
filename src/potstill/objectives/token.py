"""The token objective: (1 - w) T^k D(teacher, student; T) + w CE, summed over scored tokens.

k is the divergence's temperature power (2 for locally quadratic ones: Hinton, Vinyals & Dean 2015,
arXiv:1503.02531) and applies only when a hard-label term is mixed in, to keep their balance; without
one the raw divergence is minimised.

These are its settings and what they accept; `objectives/rows.py` has the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError, TrainingStopped
from potstill.objectives.fused import linear_loss
from potstill.objectives.rows import TokenRows
from potstill.objectives.terms import HIDDEN, StudentView
from potstill.objectives.vector import through_vectors
from potstill.signals.signal import Signal
from potstill.signals.support import Tail
from potstill.signals.top import TopIds
from potstill.signals.vector import KlVector
from potstill.token_weights._token_weight import TokenWeight
from potstill.types import Loss, places_in_answers

__all__ = ["Divergence", "TokenLoss", "TokenRows", "TokenWeight"]

Weigh: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student_lp [N, K], teacher_lp [N, K], place [N]) -> weights [N]."""


@dataclass(frozen=True)
class TokenLoss:
    """The settings of the objective at one moment; the caller resolves schedules.

    Args:
        divergence: what compares the two distributions.
        temperature: T > 0 of the divergence, for both sides.
        ce_weight: w in [0, 1], the share of the hard-label term.
        tail: how stored top-k targets treat the ids that were not stored.
        weigh: weights of the tokens, from both log-probabilities and the places in the answers.
        balanced: T^k also at a share of 0, for a schedule that passes through it.
        top: compare the teacher's likeliest ids alone, renormalised; None the whole signal.
    """

    divergence: Divergence
    temperature: float = 1.0
    ce_weight: float = 0.0
    tail: Tail = "bucket"
    weigh: Weigh | None = None
    balanced: bool = False
    top: TopIds | None = None

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
        """Metrics that are summed in every step, however few tokens there are."""
        used = {"divergence": self.ce_weight < 1, "cross_entropy": self.ce_weight > 0}
        used["weight"] = self.weigh is not None
        return tuple(name for name in used if used[name])

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """The objective on a batch, as a term of a training step."""
        batch = student.batch
        if isinstance(signal, KlVector) and self.ce_weight < 1.0:
            return through_vectors(self, student, signal)
        place = None if self.weigh is None else places_in_answers(batch.predicts)
        rowwise = self.rowwise(
            signal,
            batch.targets,
            batch.hard,
            batch.weights,
            place,
            metrics=student.metrics,
            compile=student.compile,
        )
        size, rounded = student.chunk_bytes, student.rounded
        return linear_loss(student.hidden, student.head, rowwise, chunk_bytes=size, rounded=rounded)

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
        compile: bool = False,
    ) -> TokenRows:
        """The loss of a chunk of student logits against the same rows of the signal.

        Args:
            signal: the teacher's, N rows.
            targets: [N] ids; needed with a hard-label term and for `metrics`.
            hard: [N] bool; cross-entropy counts only there (never on the student's own samples).
            weights: [N] of each token's loss.
            place: [N] of each token in its answer; needed with `weigh`.
            metrics: also sum cross-entropy, entropies, agreement and acceptance.
            compile: run loss and gradient of whole distributions as one compiled function, see `Compiled`.

        Raises:
            SignalError: the divergence does not support this kind of signal, targets are none, or weights need a
                gradient.
            NotFinite: from the call, not on a GPU: a target is impossible, or something is NaN.
        """
        compared = signal if self.top is None or self.ce_weight == 1.0 else self.top.of(signal)
        chunks = None if self.ce_weight == 1.0 else compared.chunks(self.divergence, self.tail)
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            raise SignalError("the weights need a gradient, and get none here.", fix="Pass weights.detach().")
        if self.ce_weight and targets is None:
            raise SignalError("a hard-label term needs target ids.", fix="Pass targets, or ce_weight 0.")
        if isinstance(self.weigh, TokenWeight) and not self.weigh.reads(compared.kind):
            raise SignalError(
                f"the token weight {self.weigh.name} cannot be read from {compared.kind} signals.",
                fix="Choose another token weight, or a signal with the teacher's own probabilities.",
            )
        if self.weigh is not None and (chunks is None or place is None):
            raise SignalError(
                "token weights need the teacher's distribution and each token's place.",
                fix="Pass place, and a ce_weight below 1.",
            )
        counts = [] if chunks is None else [signal.rows]
        counts += [t.shape[0] for t in (targets, hard, weights, place) if t is not None]
        if not (metrics or self.ce_weight):
            targets = None
        return TokenRows(self, chunks, targets, hard, weights, place, metrics, tuple(counts), compile)
