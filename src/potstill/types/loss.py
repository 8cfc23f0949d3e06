"""A summed loss and what it is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """A sum and its count; a training loop divides once per optimizer step.

    `metrics` are sums over scored tokens too (nats unless named otherwise).
    """

    sum: Tensor  # [] differentiable
    count: Tensor  # [] int64
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """sum / count, the token mean of this batch alone; with weights, sum / their sum; 0 if nothing counts."""
        if "weight" in self.metrics:
            weight = self.metrics["weight"].to(self.sum.dtype).to(self.sum.device)
            return self.sum / torch.where(weight > 0, weight, 1.0)
        return self.sum / self.count.clamp(min=1)
