"""Check a teacher on the rows that it is to teach, before anything is learnt from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch

from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.signal import Signal
from potstill.types import Batch

UNIFORM = 0.99  # share of ln V from which a mean entropy says that the teacher knows nothing


@dataclass(frozen=True)
class TeacherCheck:
    """Means over scored tokens, in nats; `most` is ln V, what a uniform guess has of both."""

    entropy: float
    loss: float
    most: float

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


@torch.no_grad()
def check_teacher(
    signal: Signal, batch: Batch, divergence: TokenLoss, vocabulary: int
) -> TeacherCheck | None:
    """Measure the teacher's entropy and its cross-entropy on the batch's targets.

    `divergence` is any dense one. None where the signal holds no whole distribution: nothing was measured.
    """
    if not batch.count or signal.kind != "dense":
        return None
    like = torch.zeros(batch.count, vocabulary, device=batch.targets.device)
    chunks = signal.chunks(divergence.divergence, "bucket")
    teacher = cast(Dense, chunks(slice(0, batch.count), like))
    rows = divergence.rowwise(signal, batch.targets, metrics=True)
    metrics = logits_loss(teacher.logits, rows).metrics
    entropy, loss = (float(metrics[name]) / batch.count for name in ("teacher_entropy", "cross_entropy"))
    return TeacherCheck(entropy, loss, math.log(vocabulary))
