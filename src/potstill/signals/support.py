"""Both sides as log-probabilities on one shared set of outcomes, and the way back to logits.

Dense signals share the whole vocabulary. Stored ids share themselves and one bucket for the rest:
the bucket's student mass is the sum over all other ids, so its gradient spreads over them. At a position without a
stored id the bucket is the whole distribution on both sides: every divergence is 0 there, and no gradient comes of it.
No divergence knows of temperature, buckets or padding; this module owns them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Tail = Literal["bucket", "renormalise", "truncate"]

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Support:
    """Aligned log-probabilities of N positions on K outcomes, at one temperature.

    `ids` is None for the whole vocabulary; else [N, k], -1 in unused places. With `tail` the last
    of the K = k + 1 outcomes is the bucket of all other ids. `offset` [N] is a constant of the
    teacher that turns the plug-in value into the one that is reported.

    `parts` are several teachers' supports with their weights [N], where the loss is the weighted sum of their
    divergences; this support is then their average, which figures are measured on.
    """

    student_lp: Tensor  # [N, K]
    teacher_lp: Tensor  # [N, K]
    full_lp: Tensor  # [N, V], the student's log-probabilities over the whole vocabulary
    ids: Tensor | None = None
    tail: bool = False
    offset: Tensor | None = None
    parts: tuple[tuple[Tensor, Support], ...] = ()

    @property
    def unstated(self) -> Tensor:
        """Whether each position [N] has no id where ids are stored."""
        if self.ids is None:
            return torch.zeros(len(self.full_lp), dtype=torch.bool, device=self.full_lp.device)
        return (self.ids < 0).all(-1)

    def pull_back(self, partial: Tensor, temperature: float, out: Tensor, *, tangent: bool = False) -> Tensor:
        """Write d value / d logits [N, V] into `out`, given d value / d student_lp [N, K].

        Dense: (g - softmax * sum g) / T. An id j in the tail: (g_tail q_j / Q_tail - q_j sum g) / T.
        `out` may be the memory of `full_lp`. `tangent` says that sum g is 0 by the divergence's formula.
        """
        if tangent and self.ids is None:
            return torch.div(partial, temperature, out=out) if temperature != 1.0 else out.copy_(partial)
        total = partial.sum(-1, keepdim=True)
        if self.ids is None:
            torch.exp(self.full_lp, out=out)
            out.mul_(-total).add_(partial)
            return out if temperature == 1.0 else out.div_(temperature)
        used, k = self.ids >= 0, self.ids.shape[1]
        exact = partial[:, :k] - self.student_lp[:, :k].exp() * total
        if self.tail:
            tail_lp = self.student_lp[:, k:]
            # The student's share of id j inside the bucket, in logs because the bucket can be tiny.
            share = torch.exp((self.full_lp - torch.where(tail_lp == NEG_INF, 0.0, tail_lp)).clamp(max=0.0))
            grad = share.mul_(partial[:, k:]).sub_(self.full_lp.exp().mul_(total))
        else:
            grad = torch.zeros_like(self.full_lp)
        # Unused places repeat what the first one writes; a position without ids keeps what its first column has.
        first = torch.where(used[:, :1], exact[:, :1], grad[:, :1])
        grad.scatter_(1, _columns(self.ids), torch.where(used, exact, first))
        torch.div(grad, temperature, out=out)
        return out


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """log_softmax(logits / T) over the last axis, at least in fp32."""
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return torch.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)


def gather(full_lp: Tensor, ids: Tensor) -> Tensor:
    """The student's log-probabilities at the ids, -inf in unused places."""
    return full_lp.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, NEG_INF)


def complement(full_lp: Tensor, ids: Tensor) -> Tensor:
    """Log of the student's mass on every other id, summed there: exact however small it is; 0 without an id."""
    others = full_lp.scatter(1, _columns(ids), NEG_INF).logsumexp(-1, keepdim=True)
    return others.masked_fill(ids[:, :1] < 0, 0.0)


def _columns(ids: Tensor) -> Tensor:
    """The ids, in unused places the position's first one again; 0 where it has none."""
    return torch.where(ids >= 0, ids, ids[:, :1]).clamp(min=0)
