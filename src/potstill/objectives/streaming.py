"""The loss without gradients and without a row of logits: two sweeps over tiles of the vocabulary.

The first sweep keeps each position's log-sum-exp (running maximum and sum), the second adds the
divergence's terms tile by tile. What is kept is O(N), whatever the vocabulary; the price is a second
matrix product. Right for divergences whose value is a sum over outcomes (`ADDITIVE`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.errors import NotFinite, SignalError
from potstill.models.projection import Projection, wide
from potstill.objectives import stored
from potstill.objectives.token import TokenLoss
from potstill.types import Head, Hidden, Loss

TILE, ROWS = 1024, 256  # ids and positions of a tile
NEG_INF = float("-inf")


@torch.no_grad()
def streamed_loss(
    hidden: Tensor,
    head: Head,
    signal: Hidden,
    loss: TokenLoss,
    targets: Tensor | None = None,
    *,
    hard: Tensor | None = None,
    weights: Tensor | None = None,
    metrics: bool = False,
) -> Loss:
    """Sum over the N rows of `hidden` of the token loss, as `linear_loss` gives it, without a gradient.

    Args:
        hidden: [N, H], scored positions only.
        head: the student's; its padded rows are cut before the softmax.
        signal: the teacher's hidden states and head, same N and vocabulary.
        loss: the objective; see `TokenLoss.rowwise` for `targets`, `hard`, `weights` and `metrics`.

    Raises:
        SignalError: the divergence is no sum over outcomes, a head's form is unknown, or the vocabularies
            differ.
        NotFinite: a target is impossible, or something is NaN.
    """
    if reason := unable(head, signal, loss):
        raise SignalError(reason, fix="Use mode 'store', which goes over rows instead.")
    if loss.ce_weight and targets is None:
        raise SignalError("a hard-label term needs target ids.", fix="Pass targets, or ce_weight 0.")
    if not (metrics or loss.ce_weight):
        targets = None  # nothing here looks at them
    if targets is not None:
        stored.within(targets, head.vocabulary)
    n, device = hidden.shape[0], hidden.device
    dtype = wide(torch.promote_types(hidden.dtype, head.weight.dtype))  # type: ignore[union-attr]
    at = loss.temperature
    student, teacher = _Normaliser.empty(n, dtype, device), _Normaliser.empty(n, dtype, device)
    plain = student if at == 1.0 else _Normaliser.empty(n, dtype, device)
    target_logit = torch.zeros(n, dtype=dtype, device=device)
    compares = loss.ce_weight < 1
    for rows, ids, z, t in _tiles(hidden, head, signal, dtype):
        student.see(rows, ids, z / at)
        teacher.see(rows, ids, t / at)
        if targets is not None:
            if plain is not student:
                plain.see(rows, ids, z)
            _pick(target_logit, rows, ids, z, targets)
    student_lse, teacher_lse = student.lse(), teacher.lse()
    sums = torch.zeros(4, n, dtype=torch.float64, device=device)
    for rows, _, z, t in _tiles(hidden, head, signal, dtype) if compares else ():
        student_lp = (z / at).sub_(student_lse[rows, None])
        teacher_lp = (t / at).sub_(teacher_lse[rows, None])
        sums[0, rows] += loss.divergence.value(student_lp, teacher_lp, **loss.divergence.options)
        if metrics:
            q, p = student_lp.exp(), teacher_lp.exp()
            sums[1, rows] -= torch.where(q > 0, q * student_lp, 0.0).sum(-1)
            sums[2, rows] -= torch.where(p > 0, p * teacher_lp, 0.0).sum(-1)
            sums[3, rows] += torch.minimum(p, q).sum(-1)
    found = {"divergence": sums[0].sum()} if compares else {}
    if metrics and compares:
        found |= {
            "student_entropy": sums[1].sum(),
            "teacher_entropy": sums[2].sum(),
            "agreement": (student.best == teacher.best).double().sum(),
            "acceptance": sums[3].sum(),
        }
    value = sums[0] * (loss.scale * (1 - loss.ce_weight)) if compares else sums[0]
    if targets is not None:
        ce = (plain.lse() - target_logit).double()
        found["cross_entropy"] = ce.sum()
        if loss.ce_weight > 0:
            value = value + loss.ce_weight * (ce if hard is None else torch.where(hard, ce, 0.0))
    if weights is not None:
        value = value * weights
    if not value.isfinite().all():
        position = int((~value.isfinite()).nonzero()[0])
        raise NotFinite(
            f"the {loss.divergence.name} loss is {float(value[position])} at scored position {position}.",
            position=position,
            fix="Mode 'store' names the id that one side forbids and the other uses.",
        )
    return Loss(value.sum().to(dtype), torch.tensor(n, device=device), found)


def unable(head: Head, signal: object, loss: TokenLoss) -> str:
    """Why this cannot be streamed over the vocabulary, or nothing."""
    if loss.weigh is not None:
        return "named token weights need whole rows of the vocabulary."
    if not loss.divergence.additive:
        return f"{loss.divergence.name} is not a sum over outcomes, so it cannot be added up tile by tile."
    if not isinstance(signal, Hidden):
        return f"only a teacher with hidden states can be streamed, this one gives {type(signal).__name__}."
    if head.module is not None or signal.head.module is not None:
        return "a head of unknown form (quantised, say) cannot be cut into tiles."
    if signal.head.vocabulary != head.vocabulary:
        return f"the teacher's vocabulary has {signal.head.vocabulary} ids, the student's {head.vocabulary}."
    return ""


@dataclass
class _Normaliser:
    """The log-sum-exp of each position, and its likeliest id, from tiles that are seen once."""

    highest: Tensor  # [N] the largest logit so far
    mass: Tensor  # [N] sum of exp(logit - highest)
    best: Tensor  # [N] id of the largest logit

    @staticmethod
    def empty(n: int, dtype: torch.dtype, device: torch.device) -> _Normaliser:
        return _Normaliser(
            torch.full((n,), NEG_INF, dtype=dtype, device=device),
            torch.zeros(n, dtype=dtype, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
        )

    def see(self, rows: slice, ids: slice, logits: Tensor) -> None:
        top, place = logits.max(-1)
        old, new = self.highest[rows], torch.maximum(self.highest[rows], top)
        shift = torch.where(new.isneginf(), 0.0, new)
        self.mass[rows] *= torch.exp(old - shift)
        self.mass[rows] += torch.exp(logits - shift[:, None]).sum(-1)
        self.best[rows] = torch.where(top > old, place + ids.start, self.best[rows])
        self.highest[rows] = new

    def lse(self) -> Tensor:
        return self.highest + self.mass.log()


def _tiles(
    hidden: Tensor, head: Head, signal: Hidden, dtype: torch.dtype
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """(rows, ids, student logits, teacher logits); both live until the next tile only."""
    n = hidden.shape[0]
    buffers = torch.empty(2, min(ROWS, n) * TILE, dtype=dtype, device=hidden.device)
    for start in range(0, head.vocabulary, TILE):
        ids = slice(start, min(start + TILE, head.vocabulary))
        student = Projection(_part(head, ids), hidden.dtype)
        teacher = Projection(_part(signal.head, ids), signal.hidden.dtype)
        for first in range(0, n, ROWS):
            rows = slice(first, min(first + ROWS, n))
            size = (rows.stop - rows.start, ids.stop - ids.start)
            z, t = (
                projection.logits(
                    states[rows], buffer[: size[0] * size[1]].view(size).to(projection.dtype)
                ).to(dtype)
                for projection, states, buffer in (
                    (student, hidden, buffers[0]),
                    (teacher, signal.hidden, buffers[1]),
                )
            )
            yield rows, ids, z, t


def _part(head: Head, ids: slice) -> Head:
    """The head of some ids only."""
    assert head.weight is not None
    lora = head.lora
    return replace(
        head,
        weight=head.weight[ids],
        bias=None if head.bias is None else head.bias[ids],
        lora=None if lora is None else (lora[0], lora[1][ids], lora[2]),
        vocabulary=ids.stop - ids.start,
    )


def _pick(into: Tensor, rows: slice, ids: slice, logits: Tensor, targets: Tensor) -> None:
    """Logits of the targets that lie in this tile."""
    place = targets[rows] - ids.start
    inside = (place >= 0) & (place < logits.shape[1])
    chosen = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    into[rows] = torch.where(inside, chosen, into[rows])
