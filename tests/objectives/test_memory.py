"""Logits of a whole batch never exist at one time, in neither direction."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from builders.losses import Living
from builders.losses import normal as normal_in
from potstill.divergences import forward_kl, jsd
from potstill.objectives.fused import linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.types import Head

N, H, V = 512, 8, 8000
DENSE = N * V * 4  # bytes of one whole set of logits
normal = partial(normal_in, dtype=torch.float32)


@pytest.mark.parametrize("mode", ["store", "recompute"])
@pytest.mark.parametrize("rows", [64, 100])
@pytest.mark.parametrize("divergence", [forward_kl, jsd])
def test_a_chunked_loss_holds_less_than_one_set_of_logits(divergence, rows, mode):
    """Forward and backward together stay below one set of logits, where the dense way needs several."""
    hidden, weight = normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_()
    teacher, other = normal(N, H, seed=3), normal(V, H, seed=4)
    loss = TokenLoss(Divergence.from_module(divergence))
    with Living() as living:
        signal = Hidden(teacher, Head(other, V))
        out = linear_loss(
            hidden, Head(weight, V), loss.rowwise(signal), chunk_bytes=2 * rows * V * 4, mode=mode
        )
        # What recomputing holds on to is the memory of one chunk.
        assert living.now < DENSE / 16 + (2 * rows * V * 4 if mode == "recompute" else 0)
        out.sum.backward()
    assert living.most < DENSE
    with Living() as whole:
        z = hidden.detach() @ weight.detach().t()
        z.requires_grad_()
        dense = logits_loss(z, loss.rowwise(Dense(teacher @ other.t())))
        dense.sum.backward()
    assert living.most < whole.most / 2
    torch.testing.assert_close(out.sum, dense.sum, atol=1e-3, rtol=1e-6)
    torch.testing.assert_close(hidden.grad, z.grad @ weight.detach(), atol=1e-4, rtol=1e-4)


def test_positions_that_are_not_scored_are_not_projected():
    """One scored position of 4096 costs the logits of one."""
    from potstill import DistillationLoss

    mask = torch.zeros(1, 4096, dtype=torch.bool)
    mask[0, 7] = True
    hidden, weight = normal(1, 4096, H, seed=1).requires_grad_(), normal(V, H, seed=2)
    with Living() as living:
        DistillationLoss()(hidden, weight, normal(1, 4096, H, seed=3), weight, mask).sum.backward()
    assert living.most < 64 * V * 4


def test_mode_eval_holds_the_same_memory_for_any_number_of_tokens():
    from potstill import DistillationLoss

    weight = normal(V, H, seed=2)
    held = []
    for n in (N, 4 * N):
        with Living() as living:
            loss = DistillationLoss("jsd", mode="eval", chunk_bytes=2 * 32 * V * 4)
            loss(
                normal(1, n, H, seed=1),
                weight,
                normal(1, n, H, seed=3),
                weight,
                torch.ones(1, n),
                metrics=True,
            )
        held.append(living.most)
    assert held[1] < 1.05 * held[0] < DENSE
