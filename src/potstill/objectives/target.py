"""A teacher's signal, made ready to lie beside chunks of student logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.errors import SignalError
from potstill.models.projection import Projection
from potstill.objectives import stored
from potstill.objectives.divergence import Divergence
from potstill.signals import support
from potstill.types import Dense, Head, Hidden, Sampled, Signal, Text, TopK

Against = Callable[[Tensor, slice], support.Support]
KINDS = {Dense: "dense", Hidden: "dense", TopK: "topk", Sampled: "sampled"}


def kind_of(signal: Signal) -> str:
    """What plug-ins call the signal in SUPPORTS; "text" has no distribution."""
    return KINDS.get(type(signal), "text")


@dataclass(frozen=True)
class Target:
    """`load(rows, width, like)` answers with what lays those rows beside student logits [c, width]."""

    rows: int
    load: Callable[[slice, int, Tensor], Against]


def target_of(signal: Signal, divergence: Divergence, temperature: float, tail: support.Tail) -> Target:
    """The signal as a target of this divergence.

    Raises:
        SignalError: the divergence does not support the signal, or the signal is no distribution.
    """
    if isinstance(signal, Text):
        raise SignalError(
            "the teacher gave only text, which has no distribution to compare.",
            fix="Use the stage finetune, or ce_weight: 1.0.",
        )
    kind = kind_of(signal)
    if kind not in divergence.supports:
        able = ", ".join(sorted(divergence.supports))
        raise SignalError(
            f"{divergence.name} does not support {kind} signals, only: {able}.",
            fix="Choose another divergence, or a signal that it supports.",
        )
    if isinstance(signal, TopK):
        return _top_k(stored.ready(signal), divergence, temperature, tail)
    if isinstance(signal, Sampled):
        return _sampled(stored.ready(signal), divergence, temperature)
    return _dense(signal, temperature)


def _top_k(signal: TopK, divergence: Divergence, temperature: float, tail: support.Tail) -> Target:
    if tail == "truncate" and not (divergence.vanishes and divergence.linear):
        raise SignalError(
            f"true masses without the tail are defined for forward KL only, not for {divergence.name}.",
            fix="Use the tail bucket.",
        )

    def lay(z: Tensor, at: slice) -> support.Support:
        part = TopK(signal.ids[at], signal.lp[at], {t: v[at] for t, v in signal.lse.items()})
        return support.top_k(z, part, temperature, tail)

    return _on_ids(signal.ids, lay)


def _sampled(signal: Sampled, divergence: Divergence, temperature: float) -> Target:
    entropy = signal.entropy
    if entropy is None and divergence.vanishes:
        raise SignalError(
            f"drawn ids without the teacher's entropy cannot report {divergence.name}, only its gradient.",
            fix="Store the entropy beside the ids, or use soft_cross_entropy: the gradient is the same.",
        )

    reported = entropy if divergence.vanishes else None

    def lay(z: Tensor, at: slice) -> support.Support:
        own = None if reported is None else reported[at]
        part = Sampled(signal.ids[at], signal.counts[at], own, signal.temperature)
        return support.sampled(z, part, temperature)

    return _on_ids(signal.ids, lay)


def _on_ids(ids: Tensor, lay: Against) -> Target:
    """A target of stored ids; `lay` takes rows of the whole signal, not of a chunk."""

    def load(rows: slice, width: int, like: Tensor) -> Against:
        stored.within(ids[rows], width)
        return lambda z, r: lay(z, slice(rows.start + r.start, rows.start + r.stop))

    return Target(ids.shape[0], load)


def _dense(signal: Dense | Hidden, temperature: float) -> Target:
    buffers: list[Tensor] = []
    known = isinstance(signal, Hidden) and signal.head.module is None
    projection = Projection(signal.head, signal.hidden.dtype) if known else None  # type: ignore[union-attr]

    def load(rows: slice, width: int, like: Tensor) -> Against:
        logits = _dense_rows(signal, rows, width, like, projection, buffers)
        return lambda z, r: support.dense(z, logits[r], temperature)

    return Target((signal.logits if isinstance(signal, Dense) else signal.hidden).shape[0], load)


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
        buffers.append(torch.empty(hidden.shape[0], width, dtype=projection.dtype, device=like.device))
    return projection.logits(hidden, buffers[0][: hidden.shape[0]]).to(like.dtype)


def module_logits(head: Head, hidden: Tensor) -> Tensor:
    """Logits through a head of unknown form, without a graph."""
    assert head.module is not None
    with torch.no_grad():
        logits = head.module(hidden)[:, : head.vocabulary].float() * head.scale
        return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
