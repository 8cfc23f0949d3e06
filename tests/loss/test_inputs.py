"""Masks, labels, weights and settings: shapes that disagree and values out of range are refused."""

from __future__ import annotations

import math

import pytest
import torch

from builders.losses import normal
from potstill import DistillationLoss
from potstill.errors import RecipeError, SignalError
from potstill.signals.topk import TopK


def test_a_teacher_of_another_length_is_refused_with_both_shapes():
    """Both shapes are named, from logits and from hidden states."""
    with pytest.raises(
        SignalError, match=r"the teacher's positions are \(1, 3\), the student's positions are \(1, 2\)"
    ):
        DistillationLoss().from_logits(torch.zeros(1, 2, 5), torch.zeros(1, 3, 5), torch.ones(1, 2))
    head = torch.zeros(7, 5)
    with pytest.raises(
        SignalError, match=r"the teacher's positions are \(1, 3\), the student's positions are \(1, 2\)"
    ):
        DistillationLoss()(torch.zeros(1, 2, 5), head, torch.zeros(1, 3, 5), head, torch.ones(1, 2))


def test_weights_of_another_shape_are_refused():
    """Weights belong to positions, as the mask does."""
    with pytest.raises(SignalError, match=r"weights are \(1, 3\), the student's positions are \(1, 2\)"):
        DistillationLoss().from_logits(
            torch.zeros(1, 2, 5), torch.zeros(1, 2, 5), torch.ones(1, 2), weights=torch.ones(1, 3)
        )


def test_a_vocabulary_wider_than_the_logits_is_refused_for_stored_ids():
    """vocabulary=9 with five logits is refused for stored ids as it is for logits."""
    signal = TopK(torch.tensor([[4]]), torch.tensor([[-0.1]]))
    with pytest.raises(SignalError, match="vocabulary is 9"):
        DistillationLoss(vocabulary=9).from_logits(torch.zeros(1, 1, 5), signal, torch.ones(1, 1))


@pytest.mark.parametrize("mode", ["store", "eval"])
@pytest.mark.parametrize("ce_weight", [0.0, 1.0])
def test_a_negative_label_is_refused(mode, ce_weight):
    loss = DistillationLoss("forward_kl", mode=mode, ce_weight=ce_weight)
    with pytest.raises(SignalError, match="labels hold -1"):
        loss(
            normal(1, 4, 8),
            normal(20, 8),
            normal(1, 4, 8),
            normal(20, 8),
            labels=torch.tensor([[3, 4, -1, -100]]),
        )


def test_labels_in_the_place_of_the_mask_are_refused():
    """Taken as a mask, labels score every position, since -100 and ids are all true."""
    labels = torch.tensor([[-100, 4, 5]])
    parts = normal(1, 3, 8), normal(20, 8), normal(1, 3, 8), normal(20, 8)
    with pytest.raises(SignalError, match="mask holds more than 0 and 1"):
        DistillationLoss()(*parts, labels)
    ones = DistillationLoss()(*parts, torch.tensor([[0, 1, 1]])).sum
    torch.testing.assert_close(ones, DistillationLoss()(*parts, torch.tensor([[False, True, True]])).sum)


def test_the_mean_of_weighted_tokens_divides_by_their_weights():
    parts = normal(2, 4, 8), normal(20, 8, seed=1), normal(2, 4, 8, seed=2), normal(20, 8, seed=3)
    mask, ones = torch.ones(2, 4).bool(), torch.ones(2, 4)
    for mode in ("store", "eval"):
        loss = DistillationLoss("forward_kl", mode=mode)
        torch.testing.assert_close(
            loss(*parts, mask, weights=2 * ones).mean, loss(*parts, mask, weights=ones).mean
        )


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_negative_or_not_finite_is_refused(value):
    weights = torch.ones(1, 3)
    weights[0, 1] = value
    parts = normal(1, 3, 8), normal(20, 8), normal(1, 3, 8), normal(20, 8)
    with pytest.raises(SignalError, match="a weight is negative or not finite"):
        DistillationLoss()(*parts, torch.ones(1, 3).bool(), weights=weights)
    DistillationLoss()(*parts, torch.tensor([[True, False, True]]), weights=weights)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"vocabulary": 0}, SignalError),
        ({"vocabulary": -3}, SignalError),
        ({"divergence": "jsd", "beta": 2.0}, RecipeError),
        ({"divergence": "renyi", "r": -1.0}, RecipeError),
        ({"ce_weight": 1.0, "token_weights": "entropy"}, SignalError),
    ],
)
def test_settings_out_of_range_are_refused_when_the_loss_is_made(given, error):
    with pytest.raises(error):
        DistillationLoss(**given)


@pytest.mark.parametrize("path", ["hidden", "logits"])
def test_weights_that_need_a_gradient_are_refused(path):
    z, weights = torch.randn(1, 3, 5), torch.ones(1, 3, requires_grad=True)
    eye, mask = torch.eye(5), torch.ones(1, 3)
    given = (z, eye, z, eye, mask) if path == "hidden" else (z, z, mask)
    loss = DistillationLoss()
    call = loss if path == "hidden" else loss.from_logits
    with pytest.raises(SignalError, match=r"weights need a gradient.*weights.detach"):
        call(*given, weights=weights)
    assert call(*given, weights=weights.detach()).sum == 0
    with torch.no_grad():
        assert call(*given, weights=weights).sum == 0


@pytest.mark.parametrize(
    "given", [("forward_kl", "temperature"), ("forward_kl", "ce_weight"), ("jsd", "beta")]
)
def test_settings_that_need_a_gradient_are_refused(given):
    name, option = given
    with pytest.raises(SignalError, match=f"{option} needs a gradient"):
        DistillationLoss(name, **{option: torch.tensor(0.5, requires_grad=True)})
