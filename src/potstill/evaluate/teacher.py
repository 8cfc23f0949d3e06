"""What a teacher knows of the rows it is to teach: told before anything is learnt from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from potstill.objectives.fused import linear_loss
from potstill.objectives.token import TokenLoss
from potstill.types import Batch, Hidden

UNIFORM = 0.99  # share of ln V from which a mean entropy says that nothing is known


@dataclass(frozen=True)
class Known:
    """Means over scored tokens, in nats; `most` is ln V, what a uniform guess has of both."""

    entropy: float
    loss: float
    most: float

    @property
    def uniform(self) -> bool:
        return self.entropy > UNIFORM * self.most

    @property
    def fault(self) -> str:
        """What is wrong, or nothing."""
        if self.uniform:
            return (
                f"the teacher's distribution is nearly uniform, {self.entropy:.2f} nats of ln V = {self.most:.2f}: "
                "its output layer may never have been loaded"
            )
        if self.loss > self.most:
            return (
                f"the teacher's loss on the first rows is {self.loss:.2f} nats per token, worse than a uniform "
                f"guess (ln V = {self.most:.2f}): its tokenizer or its weights may not be the ones you mean"
            )
        return ""


@torch.no_grad()
def known(signal: Hidden, batch: Batch, divergence: TokenLoss) -> Known:
    """Entropy of the teacher and its cross-entropy on the batch's targets. `divergence`: any dense one."""
    if not batch.count:
        return Known(0.0, 0.0, math.log(signal.head.vocabulary))
    rowwise = divergence.rowwise(signal, batch.targets, metrics=True)
    found = linear_loss(signal.hidden, signal.head, rowwise).metrics
    entropy, loss = (float(found[name]) / batch.count for name in ("teacher_entropy", "cross_entropy"))
    return Known(entropy, loss, math.log(signal.head.vocabulary))
