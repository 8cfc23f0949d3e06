"""Both sides as log-probabilities on one shared set of outcomes, and the way back to logits.

Dense signals share the whole vocabulary. Stored ids share themselves and one bucket for the rest:
the bucket's student mass is the sum over all other ids, so its gradient spreads over them.
No divergence knows of temperature, buckets or padding; this module owns them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from potstill.errors import SignalError
from potstill.types import Sampled, TopK

Tail = Literal["bucket", "renormalise", "truncate"]

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Support:
    """Aligned log-probabilities of N positions on K outcomes, at one temperature.

    `ids` is None for the whole vocabulary; else [N, k], -1 in unused places. With `tail` the last
    of the K = k + 1 outcomes is the bucket of all other ids. `offset` [N] is a constant of the
    teacher that turns the plug-in value into the one that is reported.
    """

    student_lp: Tensor  # [N, K]
    teacher_lp: Tensor  # [N, K]
    full_lp: Tensor  # [N, V], the student's log-probabilities over the whole vocabulary
    ids: Tensor | None = None
    tail: bool = False
    offset: Tensor | None = None

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
        used = self.ids >= 0
        columns = torch.where(used, self.ids, self.ids[:, :1])
        k = self.ids.shape[1]
        exact = partial[:, :k] - self.student_lp[:, :k].exp() * total
        exact = torch.where(used, exact, exact[:, :1])
        if self.tail:
            tail_lp = self.student_lp[:, k:]
            # The student's share of id j inside the bucket, in logs because the bucket can be tiny.
            share = torch.exp((self.full_lp - torch.where(tail_lp == NEG_INF, 0.0, tail_lp)).clamp(max=0.0))
            grad = share.mul_(partial[:, k:]).sub_(self.full_lp.exp().mul_(total))
        else:
            grad = torch.zeros_like(self.full_lp)
        grad.scatter_(1, columns, exact)
        torch.div(grad, temperature, out=out)
        return out


def dense(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Support:
    """The whole vocabulary. Both [N, V], padded columns already cut; logits before temperature.

    Raises:
        SignalError: the widths differ.
    """
    if student_logits.shape != teacher_logits.shape:
        raise SignalError(
            f"student logits are {tuple(student_logits.shape)}, teacher logits {tuple(teacher_logits.shape)}",
            fix="Cut both to the shared vocabulary first.",
        )
    student_lp = tempered(student_logits, temperature)
    return Support(student_lp, tempered(teacher_logits, temperature), student_lp)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """log_softmax(logits / T) over the last axis, at least in fp32."""
    wide = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    return torch.log_softmax(wide if temperature == 1.0 else wide / temperature, dim=-1)


def top_k(student_logits: Tensor, signal: TopK, temperature: float, tail: Tail = "bucket") -> Support:
    """The teacher's stored ids, and by default one bucket for all the others.

    `tail="renormalise"` divides both sides by their mass on the stored ids; `"truncate"` keeps the
    true masses and leaves the rest out (its optimum is not the teacher). Both are biased and exist
    by name only.

    Raises:
        SignalError: the signal has no log-sum-exp at this temperature.
    """
    teacher_lp = signal.lp.to(torch.promote_types(student_logits.dtype, torch.float32))
    if temperature != 1.0:
        if temperature not in signal.lse:
            stored = ", ".join(str(t) for t in sorted({1.0, *signal.lse}))
            raise SignalError(
                f"the stored top-k targets cannot be re-tempered to T={temperature}: they hold T={stored}",
                fix="Capture again with that temperature, or use a stored one.",
            )
        teacher_lp = teacher_lp / temperature - signal.lse[temperature].to(teacher_lp).unsqueeze(-1)
    teacher_lp = teacher_lp.masked_fill(signal.ids < 0, NEG_INF)
    full = tempered(student_logits, temperature)
    on_ids = _gather(full, signal.ids)
    if signal.ids.shape[1] >= full.shape[1] and bool((signal.ids >= 0).all()):
        return Support(on_ids, teacher_lp, full, signal.ids)
    log_mass = torch.logsumexp(teacher_lp, -1, keepdim=True)
    if tail == "renormalise":
        # A softmax over the stored ids alone; every other id gets no gradient.
        inside = on_ids - on_ids.logsumexp(-1, keepdim=True)
        return Support(inside, teacher_lp - log_mass, full, signal.ids)
    if tail == "truncate":
        missing = torch.full_like(log_mass, NEG_INF)
        return Support(
            torch.cat([on_ids, _complement(full, signal.ids)], -1),
            torch.cat([teacher_lp, missing], -1),
            full,
            signal.ids,
            tail=True,
            offset=torch.expm1(log_mass).squeeze(-1),
        )
    others = _complement(full, signal.ids)
    return Support(
        torch.cat([on_ids, others], -1),
        torch.cat([teacher_lp, _rest(teacher_lp, others, signal.lp.dtype)], -1),
        full,
        signal.ids,
        tail=True,
    )


def sampled(student_logits: Tensor, signal: Sampled, temperature: float) -> Support:
    """Ids drawn from the teacher. The value plus `offset` is CE - H(p): unbiased, and negative
    about half the time near equality; without a stored entropy it is the biased plug-in KL.

    Raises:
        SignalError: the ids were drawn at another temperature.
    """
    if temperature != signal.temperature:
        raise SignalError(
            f"ids drawn at T={signal.temperature} cannot serve T={temperature}",
            fix=f"Draw again at T={temperature}, or set temperature: {signal.temperature}.",
        )
    full = tempered(student_logits, temperature)
    counts = signal.counts.to(full.dtype)
    share = counts / counts.sum(-1, keepdim=True)
    teacher_lp = share.log()
    offset = None
    if signal.entropy is not None:
        offset = -torch.xlogy(share, share).sum(-1) - signal.entropy.to(full.dtype)
    return Support(
        torch.cat([_gather(full, signal.ids), _complement(full, signal.ids)], -1),
        torch.cat([teacher_lp, torch.full_like(teacher_lp[:, :1], NEG_INF)], -1),
        full,
        signal.ids,
        tail=True,
        offset=offset,
    )


def _gather(full_lp: Tensor, ids: Tensor) -> Tensor:
    return full_lp.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, NEG_INF)


def _rest(teacher_lp: Tensor, others: Tensor, stored: torch.dtype) -> Tensor:
    """Log of the teacher's mass outside the stored ids, [N, 1]: 1 minus their mass, in float64.

    Where that is less than the rounding of the stored values, only its upper end is known: the student's
    own mass there is taken up to that end, so an exact copy is at 0 and no target is called impossible.
    """
    eps = max(torch.finfo(stored).eps, torch.finfo(teacher_lp.dtype).eps)
    lp = teacher_lp.double()
    p = lp.exp()
    mass = 1.0 - p.sum(-1, keepdim=True)
    noise = 2 * eps * torch.where(p > 0, p * (1 - lp), 0.0).sum(-1, keepdim=True)
    highest = (mass.clamp(min=0) + noise).log()
    known = mass.clamp(min=1e-300).log()
    return torch.where(mass > noise, known, torch.minimum(others.double(), highest)).to(teacher_lp.dtype)


def _complement(full_lp: Tensor, ids: Tensor) -> Tensor:
    """Log of the student's mass on every other id, summed there: exact however small it is."""
    columns = torch.where(ids >= 0, ids, ids[:, :1])
    return full_lp.scatter(1, columns, NEG_INF).logsumexp(-1, keepdim=True)
