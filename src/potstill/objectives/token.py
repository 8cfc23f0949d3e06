"""The token objective: (1 - w) T^k D(teacher, student; T) + w CE, summed over scored tokens.

k is the divergence's temperature power (2 for locally quadratic ones: Hinton, Vinyals & Dean 2015,
arXiv:1503.02531) and applies only when a hard-label term is mixed in, to keep their balance; without
one the raw divergence is minimised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.errors import NotFinite, SignalError, TrainingStopped
from potstill.objectives import stored
from potstill.objectives.divergence import Divergence
from potstill.objectives.fused import Rows, Rowwise
from potstill.objectives.target import kind_of, target_of
from potstill.objectives.weighing import Named, Weigh, weigh_by
from potstill.signals import support
from potstill.types import Signal

__all__ = ["Divergence", "TokenLoss", "Weigh", "require_finite", "require_possible", "weigh_by"]

BLOCK_BYTES = 2**19


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
    tail: support.Tail = "bucket"
    weigh: Weigh | None = None
    balanced: bool = False

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

    def rowwise(
        self,
        signal: Signal,
        targets: Tensor | None = None,
        hard: Tensor | None = None,
        weights: Tensor | None = None,
        place: Tensor | None = None,
        *,
        metrics: bool = False,
    ) -> Rowwise:
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
        teacher = (
            None if self.ce_weight == 1.0 else target_of(signal, self.divergence, self.temperature, self.tail)
        )
        if self.ce_weight and targets is None:
            raise SignalError("a hard-label term needs target ids.", fix="Pass targets, or ce_weight 0.")
        if isinstance(self.weigh, Named) and (kind := kind_of(signal)) not in self.weigh.supports:
            raise SignalError(
                f"the token weight {self.weigh.name} cannot be read from {kind} signals.",
                fix="Choose another token weight, or a signal with the teacher's own probabilities.",
            )
        if self.weigh is not None and (teacher is None or place is None):
            raise SignalError(
                "token weights need the teacher's distribution and each token's place.",
                fix="Pass place, and a ce_weight below 1.",
            )

        def rowwise(logits: Tensor, rows: slice, want_grad: bool) -> tuple[Tensor, dict[str, Tensor]]:
            n, width = logits.shape
            if targets is not None and (metrics or self.ce_weight) and not logits.is_cuda:
                stored.within(targets[rows], width)
            losses = logits.new_empty(n)
            sums: dict[str, Tensor] = {}
            blocks = n if logits.is_cuda else max(1, BLOCK_BYTES // (width * logits.element_size()))
            loaded = teacher.load(rows, width, logits) if teacher is not None else None
            for start in range(0, n, blocks):
                local = slice(start, min(start + blocks, n))
                absolute = slice(rows.start + local.start, rows.start + local.stop)
                block = _Block(
                    logits[local],
                    None if targets is None else targets[absolute],
                    None if hard is None else hard[absolute],
                    None if weights is None else weights[absolute].to(logits.dtype),
                    None if place is None else place[absolute],
                    absolute.start,
                )
                against = None if loaded is None else loaded(block.logits, local)
                losses[local] = self._block(block, against, want_grad, metrics, sums)
            return losses, sums

        given = [t.shape[0] for t in (targets, hard, weights, place) if t is not None]
        return Rows(rowwise, tuple(given if teacher is None else [teacher.rows, *given]))

    def _block(
        self,
        block: _Block,
        against: support.Support | None,
        want_grad: bool,
        metrics: bool,
        sums: dict[str, Tensor],
    ) -> Tensor:
        logits, w = block.logits, self.ce_weight
        mix_ce = w > 0 and block.targets is not None
        plain_lp = None
        if mix_ce or metrics:
            at_one = against is not None and self.temperature == 1.0
            plain_lp = against.full_lp if at_one else support.tempered(logits, 1.0)  # type: ignore[union-attr]
        value = logits.new_zeros(logits.shape[0])
        grad: Tensor | None = None
        weighed: Tensor | None = None
        if against is not None:
            weighed = None if self.weigh is None else self._weighed(block, against, sums)
            value, partial = self._divergence(against, want_grad)
            _accumulate(sums, "divergence", value)
            if metrics:
                _free_metrics(against, sums)
            if partial is not None:
                # The logits' own memory holds the gradient, unless cross-entropy still needs them.
                grad = against.pull_back(
                    partial, self.temperature, out=logits, tangent=self.divergence.tangent
                )
                if self.scale * (1 - w) != 1.0:
                    grad.mul_(self.scale * (1 - w))
            value = value * (self.scale * (1 - w))
        if plain_lp is not None and block.targets is not None:
            column = block.targets.unsqueeze(-1)
            ce = -plain_lp.gather(1, column).squeeze(-1)
            counted = ce if block.hard is None else torch.where(block.hard, ce, torch.zeros_like(ce))
            _accumulate(sums, "cross_entropy", ce)
            if mix_ce:
                value = value + w * counted
            if mix_ce and want_grad:
                share = w if block.hard is None else w * block.hard.to(logits.dtype).unsqueeze(-1)
                d_ce = plain_lp.exp().scatter_add_(1, column, -torch.ones_like(ce).unsqueeze(-1)).mul_(share)
                grad = logits.copy_(d_ce) if grad is None else grad.add_(d_ce)
        self._look(value, block, against)
        weights = block.weights if weighed is None else weighed
        if weights is not None:
            value = value * weights
            if grad is not None:
                grad.mul_(weights.unsqueeze(-1))
        return value

    def _look(self, value: Tensor, block: _Block, against: support.Support | None) -> None:
        """Say where a loss is not finite, and why. On a GPU that would wait for the device at every block."""
        if value.is_cuda or value.isfinite().all():
            return
        row = int((~value.isfinite()).nonzero()[0])
        reason = "" if against is None else _impossible(against, row)
        raise NotFinite(
            f"the {self.divergence.name} loss is {float(value[row])} at scored position {block.start + row}{reason}.",
            position=block.start + row,
            fix="Forbid the same ids on both sides, or take a divergence that is bounded (jsd, tvd)."
            if reason
            else "Look at the logits of both models there.",
        )

    def _weighed(self, block: _Block, against: support.Support, sums: dict[str, Tensor]) -> Tensor:
        """The hook's weights, times the caller's; their sum is the divisor of a step."""
        assert self.weigh is not None
        assert block.place is not None
        weights = self.weigh(against.student_lp.detach(), against.teacher_lp, block.place).to(block.logits)
        if block.weights is not None:
            weights = weights * block.weights
        _accumulate(sums, "weight", weights)
        return weights

    def _divergence(self, against: support.Support, want_grad: bool) -> tuple[Tensor, Tensor | None]:
        options = dict(self.divergence.options)
        if self.divergence.wants_tail:
            options["tail"] = against.tail
        if want_grad:
            value, partial = self.divergence.value_and_partial(
                against.student_lp, against.teacher_lp, **options
            )
        else:
            value, partial = self.divergence.value(against.student_lp, against.teacher_lp, **options), None
        if against.offset is not None and self.divergence.vanishes:
            value = value + against.offset
        return value, partial


@dataclass(frozen=True)
class _Block:
    logits: Tensor
    targets: Tensor | None
    hard: Tensor | None
    weights: Tensor | None
    place: Tensor | None
    start: int


def _impossible(against: support.Support, row: int) -> str:
    """The outcomes that one side forbids and the other uses, in words; nothing if there are none."""
    student, teacher = against.student_lp[row], against.teacher_lp[row]
    sides = (("student", "teacher", student, teacher), ("teacher", "student", teacher, student))
    told = []
    for one, other, forbids, uses in sides:
        places = ((forbids == -torch.inf) & (uses > -torch.inf)).nonzero()
        if len(places):
            column = int(places[0])
            tail = against.tail and column == student.shape[0] - 1
            known = column if against.ids is None or tail else int(against.ids[row, column])
            what = "the ids that were not stored" if tail else f"id {known}"
            told.append(f"the {one} gives no mass to {what}, the {other} does")
    return f": {'; '.join(told)}" if told else ""


def _accumulate(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    total = values.detach().sum(dtype=torch.float64)
    sums[name] = sums[name] + total if name in sums else total


def _free_metrics(against: support.Support, sums: dict[str, Tensor]) -> None:
    """Entropies, top-1 agreement and acceptance sum(min(p, q)) on the support, in nats and shares; with a
    bucket, also how much mass the stored ids hold on either side."""
    student, teacher = against.student_lp, against.teacher_lp
    q, p = student.exp(), teacher.exp()
    zero = torch.zeros((), dtype=q.dtype, device=q.device)
    _accumulate(sums, "student_entropy", -torch.where(q > 0, q * student, zero).sum(-1))
    _accumulate(sums, "teacher_entropy", -torch.where(p > 0, p * teacher, zero).sum(-1))
    _accumulate(sums, "agreement", (student.argmax(-1) == teacher.argmax(-1)).double())
    _accumulate(sums, "acceptance", torch.minimum(p, q).sum(-1))
    if against.tail:
        _accumulate(sums, "student_mass_on_ids", q[:, :-1].sum(-1))
        _accumulate(sums, "teacher_mass_on_ids", p[:, :-1].sum(-1))


def require_possible(divergence: float, tokens: int, loss: TokenLoss) -> None:
    """Refuse a sum below zero of a divergence that cannot be.

    Raises:
        TrainingStopped: it is below -1e-6 nats per token.
    """
    lowest = divergence / max(1, tokens)
    if loss.divergence.vanishes and loss.tail != "truncate" and lowest < -1e-6:
        raise TrainingStopped(
            f"{loss.divergence.name} is {lowest:.3g} nats per token, which no divergence can be.",
            fix="This is a fault of the signal or of the divergence; run potstill check.",
        )


def require_finite(total: Tensor, row_ids: tuple[str, ...], divergence: str) -> None:
    """Stop on a loss that is not finite.

    Raises:
        TrainingStopped: names the rows of the batch.
    """
    if not torch.isfinite(total):
        rows = ", ".join(row_ids[:8]) + (" …" if len(row_ids) > 8 else "")
        raise TrainingStopped(
            f"the {divergence} loss is {total.item()} on rows {rows}.",
            fix="Check the teacher on these rows (potstill check), or lower the learning rate.",
        )
