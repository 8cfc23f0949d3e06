"""Drawn ids: what is reported, and how unused places are written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from builders.losses import token_loss
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.signals.sampled import Sampled

P = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64).softmax(0)
ENTROPY = -(P * P.log()).sum()[None]


def value_and_gradient(logits: Tensor, signal: Sampled) -> tuple[Tensor, Tensor]:
    z = logits.clone().requires_grad_()
    out = logits_loss(z, token_loss("forward_kl").rowwise(signal))
    return out.sum.detach(), torch.autograd.grad(out.sum, z)[0]


def test_soft_cross_entropy_on_drawn_ids_averages_to_that_of_the_teacher():
    """Averaged over all draws of one id it is 1.098612 on the worked position, not 0.266217."""
    student = torch.zeros(1, 3, dtype=torch.float64)
    average = sum(
        float(P[i])
        * logits_loss(
            student,
            token_loss("soft_cross_entropy").rowwise(
                Sampled(torch.tensor([[i]]), torch.ones(1, 1, dtype=torch.float64), ENTROPY)
            ),
        ).sum.item()
        for i in range(3)
    )
    assert average == pytest.approx(1.098612, abs=1e-6)


@pytest.mark.parametrize("filler", [0, 2, 5])
def test_a_place_with_count_zero_changes_nothing(filler):
    """Places with count 0 change neither value nor gradient, whichever id stands there."""
    logits = torch.randn(1, 6, dtype=torch.float64)
    plain = Sampled(torch.tensor([[5, 2]]), torch.tensor([[3.0, 1.0]]), torch.zeros(1))
    filled = Sampled(
        torch.tensor([[5, 2, filler, filler]]), torch.tensor([[3.0, 1.0, 0.0, 0.0]]), torch.zeros(1)
    )
    for ours, wanted in zip(
        value_and_gradient(logits, filled), value_and_gradient(logits, plain), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_an_unused_place_may_stand_before_the_others():
    """An unused place before the others is as good as one behind them."""
    logits = torch.randn(1, 6, dtype=torch.float64)
    plain = Sampled(torch.tensor([[5, 2, -1]]), torch.tensor([[3.0, 1.0, 0.0]]), torch.zeros(1))
    front = Sampled(torch.tensor([[-1, 5, 2]]), torch.tensor([[0.0, 3.0, 1.0]]), torch.zeros(1))
    for ours, wanted in zip(
        value_and_gradient(logits, front), value_and_gradient(logits, plain), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_a_kl_from_drawn_ids_without_entropy_is_refused():
    """Without the teacher's entropy there is no KL to report: refused with the way out, not 0.83 nats at equality."""
    with pytest.raises(SignalError, match="entropy"):
        token_loss("forward_kl").rowwise(Sampled(torch.tensor([[0]]), torch.ones(1, 1)))
