"""Several teachers' distributions as one: averages, weights, and the ids that stored targets are compared on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.signals.ids import used_first
from potstill.signals.signal import Signal
from potstill.signals.support import NEG_INF, Support, complement, gather

Average = Literal["probabilities", "log_probabilities"]

BYTES = 32 * 2**20  # of the float32 values of one pass over a vocabulary


def averaged(sides: Sequence[Tensor], weights: Tensor, average: Average) -> Tensor:
    """Log-probabilities [N, K] of the average of M distributions, each tempered already.

    `probabilities`: log Σ w_k p_k, which minimises Σ w_k KL(p_k ‖ q) over q. `log_probabilities`: Σ w_k log p_k,
    renormalised, which minimises Σ w_k KL(q ‖ p_k): a product of experts, in which each teacher has a veto.

    Args:
        sides: log-probabilities [N, K] of each teacher on the same outcomes.
        weights: [N, M], at least 0, summing to 1; a teacher of weight 0 may say anything.
    """
    total = torch.full_like(sides[0], NEG_INF if average == "probabilities" else 0.0)
    for side, weight in zip(sides, weights.to(sides[0]).unbind(-1), strict=True):
        weight = weight.unsqueeze(-1)
        if average == "probabilities":
            total = torch.logaddexp(total, torch.where(weight > 0, side + weight.log(), NEG_INF))
        else:
            total = total + torch.where(weight > 0, weight * side, 0.0)
    return total if average == "probabilities" else total.log_softmax(-1)


def on_union(supports: Sequence[Support], full_lp: Tensor) -> tuple[Tensor, list[Tensor], bool]:
    """Each teacher on the union of all stored ids, and one bucket for the others.

    An id that teacher k did not store is likely to another one, and at most as likely to k as the least likely id
    that k stored. With r the mass of k's bucket and m such ids at a position, each is taken to have
    min(k's least stored probability, r / (m + 1)); the bucket keeps the rest. No mass is lost and no id is vetoed.

    Args:
        supports: one for each teacher: a whole vocabulary, or stored ids with a bucket.
        full_lp: [N, V], for the size of the vocabulary.

    Returns:
        ids [N, U], -1 in unused places; log-probabilities [N, U + 1] of each teacher, [N, U] without a bucket; and
        whether there is one.
    """
    width = full_lp.shape[1]
    ids = _distinct(torch.cat([one.ids for one in supports if one.ids is not None], -1))
    outside = width - (ids >= 0).sum(-1, keepdim=True)
    tail = bool((outside > 0).any())
    sides = []
    for one in supports:
        if one.ids is None:
            side = torch.cat([gather(one.teacher_lp, ids), complement(one.teacher_lp, ids)], -1)
        else:
            side = _spread(one, ids, outside, width)
        sides.append(side if tail else side[:, :-1])
    return ids, sides, tail


def _distinct(ids: Tensor) -> Tensor:
    """Each id of a position once, -1 in unused places."""
    in_order = ids.sort(-1).values
    used = in_order >= 0
    used[:, 1:] &= in_order[:, 1:] != in_order[:, :-1]
    used[:, 0] |= ~used.any(-1)  # a position of which no teacher speaks
    ids, _ = used_first(in_order.clamp(min=0), in_order, used)
    return ids[:, : int(used.sum(-1).max())]


def _spread(support: Support, ids: Tensor, outside: Tensor, width: int) -> Tensor:
    """A teacher's stored log-probabilities on `ids`, with estimates for those that it did not store, and its bucket."""
    assert support.ids is not None
    stored = support.ids.shape[1]
    lp = support.teacher_lp[:, :stored]
    rest = support.teacher_lp[:, stored:] if support.tail else torch.full_like(lp[:, :1], NEG_INF)
    # The last column takes what stands in unused places.
    whole = lp.new_full((lp.shape[0], width + 1), torch.nan)
    whole.scatter_(1, torch.where(support.ids >= 0, support.ids, width), lp)
    side, used = whole.gather(1, ids.clamp(min=0)), ids >= 0
    missing = side.isnan() & used
    count = missing.sum(-1, keepdim=True).to(lp)
    share = rest - (count + (outside > 0)).clamp(min=1).log()
    least = torch.where(support.ids >= 0, lp, torch.inf).amin(-1, keepdim=True)
    guess = torch.where(outside > 0, torch.minimum(least, share), share)
    # What the guesses leave in the bucket: r (1 - m guess / r).
    taken = torch.where(rest > NEG_INF, count * (guess - rest).exp(), 0.0)
    left = torch.where(outside > 0, rest + torch.log1p(-taken), NEG_INF)
    side = torch.where(missing, guess, side).masked_fill(~used, NEG_INF)
    return torch.cat([side, left], -1)


def entropies(signal: Signal, temperature: float, vocabulary: int, device: torch.device) -> Tensor:
    """The entropy [N] in nats of each position; where ids were stored, with the others as one outcome."""
    parts = []
    for support in _supports(signal, temperature, vocabulary, device):
        p = support.teacher_lp.exp()
        parts.append(-torch.where(p > 0, p * support.teacher_lp, 0.0).sum(-1))
    return _joined(parts, device)


def log_probabilities(
    signal: Signal, targets: Tensor, temperature: float, vocabulary: int, device: torch.device
) -> Tensor:
    """The log-probability [N] of each position's target; of one that was not stored, the estimate of `on_union`."""
    parts, begin = [], 0
    for support in _supports(signal, temperature, vocabulary, device):
        column = targets[begin : (begin := begin + support.teacher_lp.shape[0])].unsqueeze(-1)
        if support.ids is None:
            parts.append(support.teacher_lp.gather(1, column).squeeze(-1))
        else:
            outside = torch.full_like(column, vocabulary - 1)
            parts.append(_spread(support, column, outside, vocabulary)[:, 0])
    return _joined(parts, device)


def _supports(signal: Signal, temperature: float, vocabulary: int, device: torch.device) -> Iterator[Support]:
    """The signal's own side at that temperature, a bounded number of rows at a time."""
    if not signal.rows:
        return
    any_kind = Divergence(
        "the weight of a teacher", _never, has_partial=False, supports=frozenset({signal.kind})
    )
    chunks = signal.chunks(any_kind, "bucket")
    step = max(16, BYTES // (4 * vocabulary))
    for start in range(0, signal.rows, step):
        rows = slice(start, min(start + step, signal.rows))
        nobody = torch.zeros((), device=device).expand(rows.stop - rows.start, vocabulary)
        part = slice(0, rows.stop - rows.start)
        yield chunks(rows, nobody).beside(nobody, part, temperature)


def _joined(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat(list(parts)).float() if parts else torch.zeros(0, device=device)


def _never(*_: Tensor) -> Tensor:
    raise AssertionError("a teacher's weight compares nothing")
