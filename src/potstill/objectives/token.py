"""The token objective: (1 - w) T^k D(teacher, student; T) + w CE, summed over scored tokens.

k is the divergence's temperature power (2 for locally quadratic ones: Hinton, Vinyals & Dean 2015,
arXiv:1503.02531) and applies only when a hard-label term is mixed in, to keep their balance; without
one the raw divergence is minimised.

Reading order: the settings (`TokenLoss`), the rows of a batch (`TokenRows`), a block of them that fits the
processor's cache (`_block`), and its two terms (`_divergence`, `_cross_entropy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError, TrainingStopped
from potstill.objectives.diagnostics import add_free_metrics, add_sum, require_finite
from potstill.objectives.fused import linear_loss
from potstill.objectives.terms import HIDDEN, StudentView
from potstill.signals.ids import require_within
from potstill.signals.signal import Chunks, Signal
from potstill.signals.support import Support, Tail, tempered
from potstill.signals.top import TopIds
from potstill.token_weights._token_weight import TokenWeight
from potstill.types import Loss, places_in_answers

__all__ = ["Divergence", "TokenLoss", "TokenRows", "TokenWeight"]

BLOCK_BYTES = (
    2**17
)  # of one temporary; larger ones are not faster, and what they leave free in the heap is never used again

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
        place = None if self.weigh is None else places_in_answers(batch.predicts)
        rowwise = self.rowwise(
            signal, batch.targets, batch.hard, batch.weights, place, metrics=student.metrics
        )
        return linear_loss(
            student.hidden,
            student.head,
            rowwise,
            chunk_bytes=student.chunk_bytes,
            rounded=student.rounded,
        )

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
        return TokenRows(self, chunks, targets, hard, weights, place, metrics, tuple(counts))


@dataclass(frozen=True)
class TokenRows:
    """The token objective of one batch, made by `TokenLoss.rowwise` and called with chunks of its logits."""

    loss: TokenLoss
    chunks: Chunks | None  # of the teacher's signal
    targets: Tensor | None  # [N] ids, None where nothing reads them
    hard: Tensor | None  # [N] bool
    weights: Tensor | None  # [N]
    place: Tensor | None  # [N]
    metrics: bool
    counts: tuple[int, ...]  # the rows of each input

    def require_rows(self, n: int) -> None:
        """Refuse inputs that do not have N rows.

        Raises:
            SignalError: names both numbers.
        """
        if other := [count for count in self.counts if count != n]:
            raise SignalError(
                f"the targets have {other[0]} rows, {n} positions are scored.",
                fix="Give one row for each scored position, in row-major order.",
            )

    def __call__(self, logits: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted losses [c] of logits [c, V], and metric sums; the gradient replaces the logits."""
        n, width = logits.shape
        if self.targets is not None and not logits.is_cuda:
            require_within(self.targets[rows], width)
        losses = logits.new_empty(n)
        sums: dict[str, Tensor] = {}
        chunk = None if self.chunks is None else self.chunks(rows, logits)
        step = n if logits.device.type != "cpu" else max(1, BLOCK_BYTES // (width * logits.element_size()))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            support = None
            if chunk is not None:
                support = chunk.beside(logits[part], part, self.loss.temperature, self.loss.tail)
            absolute = slice(rows.start + part.start, rows.start + part.stop)
            losses[part] = self._block(logits[part], absolute, support, gradient, sums)
        return losses, sums

    def _block(
        self, logits: Tensor, rows: slice, support: Support | None, gradient: bool, sums: dict[str, Tensor]
    ) -> Tensor:
        value = logits.new_zeros(logits.shape[0])
        weights = None if self.weights is None else self.weights[rows].to(logits.dtype)
        plain_lp = None
        if self.targets is not None:  # before the divergence's gradient replaces the logits
            at_one = support is not None and self.loss.temperature == 1.0
            plain_lp = support.full_lp if at_one else tempered(logits, 1.0)  # type: ignore[union-attr]
        if support is not None:
            weights = self._weighed(weights, rows, support, sums)
            value = self._divergence(logits, support, gradient, sums)
        if plain_lp is not None:
            value = value + self._cross_entropy(logits, plain_lp, rows, gradient, sums)
        require_finite(self.loss.name, value, rows.start, support)
        if weights is not None:
            value = value * weights
            if gradient:
                logits.mul_(weights.unsqueeze(-1))
        return value

    def _divergence(
        self, logits: Tensor, support: Support, gradient: bool, sums: dict[str, Tensor]
    ) -> Tensor:
        """The divergence times its share [b]; its gradient replaces the logits."""
        loss = self.loss
        share = loss.scale * (1 - loss.ce_weight)
        out = logits if gradient else None
        value = self._sum(support, out) if support.parts else self._compared(support, out)
        if gradient and share != 1.0:
            logits.mul_(share)
        add_sum(sums, "divergence", value)
        if self.metrics:
            add_free_metrics(sums, support)
        return value * share

    def _compared(self, support: Support, out: Tensor | None, weight: Tensor | None = None) -> Tensor:
        """The divergence [b] on one support; its gradient, times `weight` [b], is written into `out`."""
        divergence, sides = self.loss.divergence, (support.student_lp, support.teacher_lp)
        if out is None:
            value = divergence.value(*sides, tail=support.tail)
        else:
            value, partial = divergence.value_and_partial(*sides, tail=support.tail)
            if weight is not None:
                partial = partial * weight.unsqueeze(-1)
            support.pull_back(partial, self.loss.temperature, out=out, tangent=divergence.tangent)
        if support.offset is not None and divergence.vanishes:
            value = value + support.offset
        return value

    def _sum(self, support: Support, out: Tensor | None) -> Tensor:
        """The weighted sum [b] of several teachers' divergences; its gradient is written into `out`."""
        value = support.student_lp.new_zeros(support.student_lp.shape[0])
        gradient = None if out is None else torch.empty_like(out)
        if out is not None:
            out.zero_()
        for weight, one in support.parts:
            value = value + weight * self._compared(one, gradient, weight)
            if out is not None and gradient is not None:
                out.add_(gradient)
        return value

    def _cross_entropy(
        self, logits: Tensor, plain_lp: Tensor, rows: slice, gradient: bool, sums: dict[str, Tensor]
    ) -> Tensor:
        """The hard-label term times its share [b]; its gradient is added to the divergence's."""
        assert self.targets is not None
        w, column = self.loss.ce_weight, self.targets[rows].unsqueeze(-1)
        ce = -plain_lp.gather(1, column).squeeze(-1)
        add_sum(sums, "cross_entropy", ce)
        if w == 0:
            return torch.zeros_like(ce)
        hard = None if self.hard is None else self.hard[rows]
        if gradient:
            share = w if hard is None else w * hard.to(logits.dtype).unsqueeze(-1)
            by_logits = plain_lp.exp().scatter_add_(1, column, -torch.ones_like(ce).unsqueeze(-1))
            by_logits.mul_(share)
            if self.chunks is None:
                logits.copy_(by_logits)
            else:
                logits.add_(by_logits)
        return w * (ce if hard is None else torch.where(hard, ce, 0.0))

    def _weighed(
        self, weights: Tensor | None, rows: slice, support: Support, sums: dict[str, Tensor]
    ) -> Tensor | None:
        """The caller's weights, times the named ones; the sum of the latter is the divisor of a step."""
        if self.loss.weigh is None:
            return weights
        assert self.place is not None
        student_lp = support.student_lp.detach()
        named = self.loss.weigh(student_lp, support.teacher_lp, self.place[rows]).to(student_lp)
        weights = named if weights is None else named * weights
        add_sum(sums, "weight", weights)
        return weights
