"""The token objective of the rows of one batch, chunk by chunk: whole, in blocks, or as one compiled function.

Reading order: the rows of a batch (`TokenRows`), a block of them that fits the processor's cache (`_block`), its two
terms (`_divergence`, `_cross_entropy`), and the function that is compiled for a GPU (`dense_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from potstill.errors import SignalError
from potstill.objectives.compiled import Compiled
from potstill.objectives.diagnostics import add_free_metrics, add_sum, require_finite
from potstill.signals.dense import Dense
from potstill.signals.ids import require_within
from potstill.signals.signal import Chunks
from potstill.signals.support import Support, tempered
from potstill.signals.vector import MeanSupport

if TYPE_CHECKING:
    from potstill.objectives.token import TokenLoss

BLOCK_BYTES = (
    2**17
)  # of one temporary; larger ones are not faster, and what they leave free in the heap is never used again


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
    compile: bool = False

    direct: ClassVar[bool] = True

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

    def __call__(
        self, logits: Tensor, rows: slice, gradient: bool, into: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted losses [c] of logits [c, V], and metric sums; the gradient replaces the logits, or fills `into`."""
        n, width = logits.shape
        if self.targets is not None and not logits.is_cuda:
            require_within(self.targets[rows], width)
        losses = logits.new_empty(n)
        sums: dict[str, Tensor] = {}
        chunk = None if self.chunks is None else self.chunks(rows, logits)
        if self.compile and gradient and isinstance(chunk, Dense):
            settings = Settings(self.loss, self.metrics)
            tensors = (
                None if t is None else t[rows] for t in (self.targets, self.hard, self.weights, self.place)
            )
            return COMPILED(settings, logits, into, chunk.logits, *tensors)
        step = n if logits.device.type != "cpu" else max(1, BLOCK_BYTES // (width * logits.element_size()))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            support = None
            if chunk is not None:
                support = chunk.beside(logits[part], part, self.loss.temperature, self.loss.tail)
            absolute = slice(rows.start + part.start, rows.start + part.stop)
            losses[part] = self._block(logits[part], absolute, support, gradient, sums)
        if into is not None:
            into.copy_(logits)
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
        if isinstance(support, MeanSupport):
            value = support.forward_kl(out, loss.temperature)
        else:
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
            if w == 1:
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


@dataclass(frozen=True)
class Settings:
    """What a compiled function is made for."""

    loss: TokenLoss
    metrics: bool


def dense_rows(
    settings: Settings,
    logits: Tensor,
    into: Tensor | None,
    teacher: Tensor,
    targets: Tensor | None,
    hard: Tensor | None,
    weights: Tensor | None,
    place: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A chunk against the teacher's logits, as `TokenRows` is called: what is compiled."""
    sums: dict[str, Tensor] = {}
    loss, rows = settings.loss, slice(0, logits.shape[0])
    part = TokenRows(loss, None, targets, hard, weights, place, settings.metrics, ())
    # In a graph no memory belongs to the copy, and the logits are written once, or not at all.
    work = logits.clone() if torch.compiler.is_compiling() else logits
    support = Dense(teacher).beside(work, rows, loss.temperature, loss.tail)
    losses = part._block(work, rows, support, True, sums)
    if into is not None or work is not logits:
        (logits if into is None else into).copy_(work)
    return losses, sums


COMPILED = Compiled(dense_rows)
