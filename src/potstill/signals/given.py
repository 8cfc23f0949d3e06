"""The teacher's log-probability of the given token, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from potstill.divergences._divergence import Divergence
from potstill.errors import SignalError
from potstill.signals.support import Tail


@dataclass(frozen=True)
class Given:
    """What policy gradients and scores need of a teacher: log p of each scored token, at T = 1."""

    kind: ClassVar[str] = "token"
    estimated: ClassVar[bool] = False

    lp: Tensor  # [N]

    @property
    def rows(self) -> int:
        return self.lp.shape[0]

    def at(self, rows: Tensor) -> Given:
        return Given(self.lp[rows])

    @staticmethod
    def of(logits: Tensor, targets: Tensor) -> Given:
        """From logits [N, V] and the tokens themselves [N]."""
        chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return Given((chosen - torch.logsumexp(logits, -1)).float())

    def chunks(self, divergence: Divergence, tail: Tail) -> NoReturn:
        raise SignalError(
            f"log-probabilities of the given tokens alone cannot be compared with {divergence.name}.",
            fix="Use policy_gradient, or a cache that holds distributions: hidden, topk or sampled.",
        )
