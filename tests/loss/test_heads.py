"""Output layers and how they say what they know."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from builders.losses import normal
from potstill import DistillationLoss
from potstill.errors import SignalError
from potstill.types import Head


@pytest.mark.parametrize("mode", ["store", "recompute", "eval"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_head_with_fewer_rows_than_its_vocabulary_is_refused(mode, side):
    """Without the check, memory beyond the weight is read."""
    loss = DistillationLoss("forward_kl", vocabulary=60, mode=mode)
    small, large = normal(50, 8, seed=1), normal(60, 8, seed=2)
    heads = (small, large) if side == "student" else (large, small)
    with pytest.raises(SignalError, match=r"60.*50|50 rows"):
        loss(
            normal(1, 3, 8),
            Head(heads[0], 60),
            normal(1, 3, 8, seed=3),
            Head(heads[1], 60),
            labels=torch.tensor([[1, 2, 3]]),
        )


class Packed(nn.Module):
    """Like a 4-bit layer: its weight's shape says nothing of what comes out."""

    def __init__(self, weight: torch.Tensor, sized: bool) -> None:
        super().__init__()
        self.full = weight
        self.weight = nn.Parameter(weight.flatten().clone().unsqueeze(-1), requires_grad=False)
        if sized:
            self.out_features = weight.shape[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.full.t()


def test_a_head_with_a_packed_weight_says_its_size_by_out_features():
    weight, teacher = normal(30, 8, seed=1), normal(30, 8, seed=2)
    hidden, mask = normal(2, 4, 8), torch.ones(2, 4).bool()
    loss = DistillationLoss("forward_kl")
    wanted = loss(hidden, weight, hidden, teacher, mask).mean
    torch.testing.assert_close(
        loss(hidden, Packed(weight, True), hidden, teacher, mask).mean.double(), wanted
    )


def test_a_head_that_cannot_say_its_size_is_refused_with_a_way_on():
    loss = DistillationLoss("forward_kl")
    with pytest.raises(SignalError, match="does not say how many ids"):
        loss(normal(1, 2, 8), nn.Identity(), normal(1, 2, 8), normal(30, 8), torch.ones(1, 2).bool())
