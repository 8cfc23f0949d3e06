"""The token objective on the rows of one batch: from student logits to losses and their gradient.

Reading order: a chunk (`__call__`), a block of it that fits the processor's cache (`_block`), and the
block's two terms (`_divergence`, `_cross_entropy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.errors import NotFinite, SignalError
from potstill.signals.ids import require_within
from potstill.signals.signal import Prepared
from potstill.signals.support import Support, tempered

if TYPE_CHECKING:
    from potstill.objectives.token import TokenLoss

BLOCK_BYTES = 2**19


@dataclass(frozen=True)
class TokenRows:
    """The token objective of one batch, made by `TokenLoss.rowwise` and called with chunks of its logits."""

    loss: TokenLoss
    teacher: Prepared | None
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
        chunk = None if self.teacher is None else self.teacher.chunk(rows, logits)
        step = n if logits.is_cuda else max(1, BLOCK_BYTES // (width * logits.element_size()))
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            against = None
            if chunk is not None:
                against = chunk.beside(logits[part], part, self.loss.temperature, self.loss.tail)
            absolute = slice(rows.start + part.start, rows.start + part.stop)
            losses[part] = self._block(logits[part], absolute, against, gradient, sums)
        return losses, sums

    def _block(
        self,
        logits: Tensor,
        rows: slice,
        against: Support | None,
        gradient: bool,
        sums: dict[str, Tensor],
    ) -> Tensor:
        value = logits.new_zeros(logits.shape[0])
        weights = None if self.weights is None else self.weights[rows].to(logits.dtype)
        plain_lp = None
        if self.targets is not None:  # before the divergence's gradient replaces the logits
            at_one = against is not None and self.loss.temperature == 1.0
            plain_lp = against.full_lp if at_one else tempered(logits, 1.0)  # type: ignore[union-attr]
        if against is not None:
            if self.loss.weigh is not None:
                weights = self._weighed(weights, rows, against, sums)
            value = self._divergence(logits, against, gradient, sums)
        if plain_lp is not None:
            value = value + self._cross_entropy(logits, plain_lp, rows, gradient, sums)
        self._require_finite(value, rows.start, against)
        if weights is not None:
            value = value * weights
            if gradient:
                logits.mul_(weights.unsqueeze(-1))
        return value

    def _divergence(
        self, logits: Tensor, against: Support, gradient: bool, sums: dict[str, Tensor]
    ) -> Tensor:
        """The divergence times its share [b]; its gradient replaces the logits."""
        loss, divergence = self.loss, self.loss.divergence
        sides = (against.student_lp, against.teacher_lp)
        share = loss.scale * (1 - loss.ce_weight)
        if gradient:
            value, partial = divergence.value_and_partial(*sides, tail=against.tail)
            against.pull_back(partial, loss.temperature, out=logits, tangent=divergence.tangent)
            if share != 1.0:
                logits.mul_(share)
        else:
            value = divergence.value(*sides, tail=against.tail)
        if against.offset is not None and divergence.vanishes:
            value = value + against.offset
        _add(sums, "divergence", value)
        if self.metrics:
            _add_free_metrics(sums, against)
        return value * share

    def _cross_entropy(
        self, logits: Tensor, plain_lp: Tensor, rows: slice, gradient: bool, sums: dict[str, Tensor]
    ) -> Tensor:
        """The hard-label term times its share [b]; its gradient comes on top of the divergence's."""
        assert self.targets is not None
        w, column = self.loss.ce_weight, self.targets[rows].unsqueeze(-1)
        ce = -plain_lp.gather(1, column).squeeze(-1)
        _add(sums, "cross_entropy", ce)
        if w == 0:
            return torch.zeros_like(ce)
        hard = None if self.hard is None else self.hard[rows]
        if gradient:
            share = w if hard is None else w * hard.to(logits.dtype).unsqueeze(-1)
            by_logits = plain_lp.exp().scatter_add_(1, column, -torch.ones_like(ce).unsqueeze(-1))
            by_logits.mul_(share)
            if self.teacher is None:
                logits.copy_(by_logits)
            else:
                logits.add_(by_logits)
        return w * (ce if hard is None else torch.where(hard, ce, 0.0))

    def _weighed(
        self, weights: Tensor | None, rows: slice, against: Support, sums: dict[str, Tensor]
    ) -> Tensor:
        """The named weights, times the caller's; their sum is the divisor of a step."""
        assert self.loss.weigh is not None
        assert self.place is not None
        student_lp = against.student_lp.detach()
        named = self.loss.weigh(student_lp, against.teacher_lp, self.place[rows]).to(student_lp)
        weights = named if weights is None else named * weights
        _add(sums, "weight", weights)
        return weights

    def _require_finite(self, value: Tensor, start: int, against: Support | None) -> None:
        """Say where a loss is not finite, and why. On a GPU that would wait for the device at every block."""
        if value.is_cuda or value.isfinite().all():
            return
        row = int((~value.isfinite()).nonzero()[0])
        reason = "" if against is None else _impossible(against, row)
        raise NotFinite(
            f"the {self.loss.name} loss is {float(value[row])} at scored position {start + row}{reason}.",
            position=start + row,
            fix="Forbid the same ids on both sides, or take a divergence that is bounded (jsd, tvd)."
            if reason
            else "Look at the logits of both models there.",
        )


def _impossible(against: Support, row: int) -> str:
    """The outcomes that one side forbids and the other uses, in words; nothing if there are none."""
    student, teacher = against.student_lp[row], against.teacher_lp[row]
    sides = (("student", "teacher", student, teacher), ("teacher", "student", teacher, student))
    reasons = []
    for one, other, forbids, uses in sides:
        places = ((forbids == -torch.inf) & (uses > -torch.inf)).nonzero()
        if len(places):
            column = int(places[0])
            if against.tail and column == student.shape[0] - 1:
                what = "the ids that were not stored"
            else:
                what = f"id {column if against.ids is None else int(against.ids[row, column])}"
            reasons.append(f"the {one} gives no mass to {what}, the {other} does")
    return f": {'; '.join(reasons)}" if reasons else ""


def _add(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    total = values.detach().sum(dtype=torch.float64)
    sums[name] = sums[name] + total if name in sums else total


def _add_free_metrics(sums: dict[str, Tensor], against: Support) -> None:
    """Entropies, top-1 agreement and acceptance sum(min(p, q)) on the support, in nats and shares; with a
    bucket, also how much mass the stored ids hold on either side."""
    student, teacher = against.student_lp, against.teacher_lp
    q, p = student.exp(), teacher.exp()
    _add(sums, "student_entropy", -torch.where(q > 0, q * student, 0.0).sum(-1))
    _add(sums, "teacher_entropy", -torch.where(p > 0, p * teacher, 0.0).sum(-1))
    _add(sums, "agreement", (student.argmax(-1) == teacher.argmax(-1)).double())
    _add(sums, "acceptance", torch.minimum(p, q).sum(-1))
    if against.tail:
        _add(sums, "student_mass_on_ids", q[:, :-1].sum(-1))
        _add(sums, "teacher_mass_on_ids", p[:, :-1].sum(-1))
