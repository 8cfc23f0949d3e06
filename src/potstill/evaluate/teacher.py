"""Check a teacher on the rows that it is to teach, before anything is learnt from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.signal import Signal
from potstill.types import Batch

UNIFORM = 0.99  # share of ln V from which a mean entropy says that the teacher knows nothing
LEFT_OUT = 0.01  # mass on ids that the student lacks, from which it is worth a warning


@dataclass(frozen=True)
class TeacherCheck:
    """Means over scored tokens, in nats; `most` is ln V, what a uniform guess has of both.

    `left_out` is the teacher's mass on ids that the student lacks, None where it has them all.
    """

    entropy: float
    loss: float
    most: float
    left_out: float | None = None

    @property
    def uniform(self) -> bool:
        """Whether the distribution is that of a guess."""
        return self.entropy > UNIFORM * self.most

    @property
    def fault(self) -> str:
        """What is wrong, or nothing."""
        if self.uniform:
            return (
                f"the teacher's distribution is nearly uniform, {self.entropy:.2f} nats of ln V = "
                f"{self.most:.2f}: its output layer may never have been loaded"
            )
        if self.loss > self.most:
            return (
                f"the teacher's loss on the first rows is {self.loss:.2f} nats per token, worse than a uniform "
                f"guess (ln V = {self.most:.2f}): its tokenizer or its weights may not be the ones you mean"
            )
        return ""

    @property
    def cut(self) -> str:
        """What the cut to shared ids leaves out, where it is more than a little."""
        if self.left_out is None or self.left_out <= LEFT_OUT:
            return ""
        return (
            f"the teacher gives {self.left_out:.1%} of its probability on the first rows to ids that the student "
            "does not have; it is left out, and the rest is renormalised"
        )


@torch.no_grad()
def check_teacher(
    signal: Signal, batch: Batch, divergence: TokenLoss, vocabulary: int, *, partial: bool = False
) -> TeacherCheck | None:
    """Measure the teacher's entropy and its cross-entropy on the batch's targets, among `vocabulary` ids.

    `divergence` is any dense one. `partial` says that other ids of the teacher are no padding, and their mass is
    measured too. None where the signal holds no whole distribution: nothing was measured.
    """
    if not batch.count or signal.kind != "dense":
        return None
    like = torch.zeros(batch.count, vocabulary, device=batch.targets.device)
    chunks = signal.chunks(divergence.divergence, "bucket")
    teacher = cast(Dense, chunks(slice(0, batch.count), like))
    rows = divergence.rowwise(signal, batch.targets, metrics=True)
    metrics = logits_loss(teacher.logits, rows).metrics
    entropy, loss = (float(metrics[name]) / batch.count for name in ("teacher_entropy", "cross_entropy"))
    beyond = left_out(signal, vocabulary, slice(0, batch.count)) if partial else None
    return TeacherCheck(entropy, loss, math.log(vocabulary), None if beyond is None else float(beyond.mean()))


@torch.no_grad()
def unstated(signal: Signal, batch: Batch, divergence: TokenLoss, vocabulary: int) -> str:
    """What to say of the batch's tokens of which a teacher states only ids that the student, with `vocabulary` ids,
    lacks; nothing where there is none, or where it does not state its likeliest ids alone."""
    if not batch.count or signal.kind != "topk":
        return ""
    every = slice(0, batch.count)
    like = torch.zeros(batch.count, vocabulary, device=batch.targets.device)
    support = signal.chunks(divergence.divergence, "bucket")(every, like).beside(like, every, 1.0)
    if not (count := int(support.unstated.sum())):
        return ""
    return (
        f"of {count} of {batch.count} tokens of the first rows the teacher states only ids that the student does not "
        "have; nothing is learnt of its distribution there"
    )


def left_out(signal: Signal, vocabulary: int, rows: slice) -> Tensor | None:
    """The teacher's probability [c] on ids from `vocabulary` on; None where it has no such ids, or does not say."""
    measure = getattr(signal, "mass_beyond", None)
    return None if measure is None else measure(vocabulary, rows)
