"""The token objective: (1 - w) T^k D(teacher, student; T) + w CE, summed over scored tokens.

k is the divergence's temperature power (2 for locally quadratic ones: Hinton, Vinyals & Dean 2015,
arXiv:1503.02531) and applies only when a hard-label term is mixed in, to keep their balance; without
one the raw divergence is minimised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill import support
from potstill.errors import SignalError, TrainingStopped
from potstill.fused import Rowwise
from potstill.projection import Projection
from potstill.types import Dense, Head, Hidden, Sampled, Signal, Text, TopK

BLOCK_BYTES = 2**19

Value = Callable[..., Tensor]
Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """A divergence as the objective needs it, made from a plug-in module by `from_module`."""

    name: str
    value: Value
    value_and_partial: Callable[..., tuple[Tensor, Tensor]]
    supports: frozenset[str] = frozenset({"dense"})
    temperature_power: int = 2
    vanishes: bool = True
    tangent: bool = False  # the partial sums to 0 over the outcomes
    additive: bool = False  # the value is a sum over the outcomes
    wants_tail: bool = False  # takes `tail`: whether the last column is a tail bucket
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        """Linear in the teacher up to a constant, so right for ids drawn from it."""
        return "sampled" in self.supports

    @staticmethod
    def from_module(module: Any, options: Mapping[str, Any] | None = None) -> Divergence:
        """Read `value`, and `value_and_partial` or `partial` where they exist; else autograd steps in."""
        name = module.__name__.rpartition(".")[2]
        both = getattr(module, "value_and_partial", None)
        partial = getattr(module, "partial", None)
        if both is None and partial is not None:

            def both(student_lp: Tensor, teacher_lp: Tensor, **kw: Any) -> tuple[Tensor, Tensor]:
                return module.value(student_lp, teacher_lp, **kw), partial(student_lp, teacher_lp, **kw)

        return Divergence(
            name=name,
            value=module.value,
            value_and_partial=both or _by_autograd(module.value),
            supports=frozenset(getattr(module, "SUPPORTS", {"dense"})),
            temperature_power=getattr(module, "TEMPERATURE_POWER", 0),
            vanishes=getattr(module, "VANISHES", False),
            tangent=getattr(module, "TANGENT", False),
            additive=getattr(module, "ADDITIVE", False),
            wants_tail="tail" in inspect.signature(module.value).parameters,
            options=dict(options or {}),
        )


def _by_autograd(value: Value) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(student_lp: Tensor, teacher_lp: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_lp.detach().requires_grad_()
            result = value(leaf, teacher_lp, **options)
            (partial,) = torch.autograd.grad(result.sum(), leaf)
        return result.detach(), partial

    return both


@dataclass(frozen=True)
class TokenLoss:
    """The settings of the objective at one moment (schedules are resolved by who calls).

    Args:
        divergence: what compares the two distributions.
        temperature: T > 0 of the divergence, for both sides.
        ce_weight: w in [0, 1], the share of the hard-label term.
        tail: how stored top-k targets treat the ids that were not stored.
        weigh: weights of the tokens, from both log-probabilities and the places in the answers.
    """

    divergence: Divergence
    temperature: float = 1.0
    ce_weight: float = 0.0
    tail: support.Tail = "bucket"
    weigh: Weigh | None = None

    @property
    def scale(self) -> float:
        """T^k beside a hard-label term, else 1."""
        return self.temperature**self.divergence.temperature_power if self.ce_weight else 1.0

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
            SignalError: the divergence does not support this kind of signal.
        """
        teacher = None if self.ce_weight == 1.0 else _Teacher.of(signal, self)
        if self.ce_weight and targets is None:
            raise SignalError("a hard-label term needs target ids.", fix="Pass targets, or ce_weight 0.")
        if self.weigh is not None and (teacher is None or place is None):
            raise SignalError(
                "token weights need the teacher's distribution and each token's place.",
                fix="Pass place, and a ce_weight below 1.",
            )

        def rowwise(logits: Tensor, rows: slice, want_grad: bool) -> tuple[Tensor, dict[str, Tensor]]:
            n, width = logits.shape
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
                )
                against = None if loaded is None else loaded(block.logits, local)
                losses[local] = self._block(block, against, want_grad, metrics, sums)
            return losses, sums

        return rowwise

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
        weights = block.weights if weighed is None else weighed
        if weights is not None:
            value = value * weights
            if grad is not None:
                grad.mul_(weights.unsqueeze(-1))
        return value

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
        if against.offset is not None:
            value = value + against.offset
        return value, partial


@dataclass(frozen=True)
class _Block:
    logits: Tensor
    targets: Tensor | None
    hard: Tensor | None
    weights: Tensor | None
    place: Tensor | None


Against = Callable[[Tensor, slice], support.Support]


@dataclass(frozen=True)
class _Teacher:
    """A signal that can be laid beside a chunk of student logits."""

    kind: str
    load: Callable[[slice, int, Tensor], Against]

    @staticmethod
    def of(signal: Signal, loss: TokenLoss) -> _Teacher:
        kinds = {Dense: "dense", Hidden: "dense", TopK: "topk", Sampled: "sampled"}
        kind = kinds.get(type(signal))
        if kind is None:
            assert isinstance(signal, Text)
            raise SignalError(
                "the teacher gave only text, which has no distribution to compare.",
                fix="Use the stage finetune, or ce_weight: 1.0.",
            )
        if kind not in loss.divergence.supports:
            able = ", ".join(sorted(loss.divergence.supports))
            raise SignalError(
                f"{loss.divergence.name} does not support {kind} signals, only: {able}.",
                fix="Choose another divergence, or a signal that it supports.",
            )
        temperature, tail = loss.temperature, loss.tail
        if (
            kind == "topk"
            and tail == "truncate"
            and not (loss.divergence.vanishes and loss.divergence.linear)
        ):
            raise SignalError(
                f"true masses without the tail are defined for forward KL only, not for {loss.divergence.name}.",
                fix="Use the tail bucket.",
            )

        def load(rows: slice, width: int, like: Tensor) -> Against:
            if isinstance(signal, TopK):
                part = TopK(signal.ids[rows], signal.lp[rows], {t: v[rows] for t, v in signal.lse.items()})
                return lambda z, r: support.top_k(
                    z,
                    TopK(part.ids[r], part.lp[r], {t: v[r] for t, v in part.lse.items()}),
                    temperature,
                    tail,
                )
            if isinstance(signal, Sampled):
                entropy = None if signal.entropy is None else signal.entropy[rows]
                ids, counts = signal.ids[rows], signal.counts[rows]
                return lambda z, r: support.sampled(
                    z,
                    Sampled(ids[r], counts[r], None if entropy is None else entropy[r], signal.temperature),
                    temperature,
                )
            assert isinstance(signal, Dense | Hidden)
            logits = _dense_rows(signal, rows, width, like, projection, buffers)
            return lambda z, r: support.dense(z, logits[r], temperature)

        buffers: list[Tensor] = []

        known = isinstance(signal, Hidden) and signal.head.module is None
        projection = Projection(signal.head, signal.hidden.dtype) if known else None  # type: ignore[union-attr]
        return _Teacher(kind, load)


def _dense_rows(
    signal: Dense | Hidden,
    rows: slice,
    width: int,
    like: Tensor,
    projection: Projection | None,
    buffers: list[Tensor],
) -> Tensor:
    """The teacher's logits of these rows, cut to the shared vocabulary; every chunk reuses one buffer."""
    if isinstance(signal, Dense):
        logits = signal.logits[rows]
        if logits.shape[1] < width:
            raise SignalError(
                f"the teacher gives {logits.shape[1]} logits, the student's vocabulary has {width}.",
                fix="Cut the student's to the ids that both know.",
            )
        return logits[:, :width].to(like.dtype)
    hidden = signal.hidden[rows]
    if signal.head.vocabulary != width:
        raise SignalError(
            f"the teacher's vocabulary has {signal.head.vocabulary} ids, the student's {width}.",
            fix="Give both heads the shared vocabulary's size.",
        )
    if projection is None:
        return module_logits(signal.head, hidden).to(like.dtype)
    if not buffers:
        buffers.append(torch.empty(hidden.shape[0], width, dtype=like.dtype, device=like.device))
    return projection.logits(hidden, buffers[0][: hidden.shape[0]])


def module_logits(head: Head, hidden: Tensor) -> Tensor:
    """Logits through a head of unknown form, without a graph."""
    assert head.module is not None
    with torch.no_grad():
        logits = head.module(hidden)[:, : head.vocabulary].float() * head.scale
        return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _accumulate(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    total = values.detach().sum(dtype=torch.float64)
    sums[name] = sums[name] + total if name in sums else total


def _free_metrics(against: support.Support, sums: dict[str, Tensor]) -> None:
    """Entropies, top-1 agreement and acceptance sum(min(p, q)) on the support, in nats and shares."""
    student, teacher = against.student_lp, against.teacher_lp
    q, p = student.exp(), teacher.exp()
    zero = torch.zeros((), dtype=q.dtype, device=q.device)
    _accumulate(sums, "student_entropy", -torch.where(q > 0, q * student, zero).sum(-1))
    _accumulate(sums, "teacher_entropy", -torch.where(p > 0, p * teacher, zero).sum(-1))
    _accumulate(sums, "agreement", (student.argmax(-1) == teacher.argmax(-1)).double())
    _accumulate(sums, "acceptance", torch.minimum(p, q).sum(-1))


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
