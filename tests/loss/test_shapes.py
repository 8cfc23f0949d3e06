"""Shapes that disagree are refused; inputs by position are read."""

from __future__ import annotations

import pytest
import torch

from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.errors import SignalError
from potstill.signals.topk import TopK


def test_a_teacher_of_another_length_is_refused_with_both_shapes():
    """Both shapes are named, from logits and from hidden states."""
    with pytest.raises(SignalError, match="3"):
        DistillationLoss().from_logits(torch.zeros(1, 2, 5), torch.zeros(1, 3, 5), torch.ones(1, 2))
    head = torch.zeros(7, 5)
    with pytest.raises(SignalError, match="3"):
        DistillationLoss()(torch.zeros(1, 2, 5), head, torch.zeros(1, 3, 5), head, torch.ones(1, 2))


def test_weights_of_another_shape_are_refused():
    """Weights belong to positions, as the mask does."""
    with pytest.raises(SignalError, match="weights"):
        DistillationLoss().from_logits(
            torch.zeros(1, 2, 5), torch.zeros(1, 2, 5), torch.ones(1, 2), weights=torch.ones(1, 3)
        )


def test_a_vocabulary_wider_than_the_logits_is_refused_for_stored_ids():
    """vocabulary=9 with five logits is refused for stored ids as it is for logits."""
    signal = TopK(torch.tensor([[4]]), torch.tensor([[-0.1]]))
    with pytest.raises(SignalError, match="vocabulary is 9"):
        DistillationLoss(vocabulary=9).from_logits(torch.zeros(1, 1, 5), signal, torch.ones(1, 1))


def test_ids_given_by_position_are_read_or_refused_by_name():
    """A student called as student(ids) is read, or the error speaks of the inputs and not of labels."""
    student, ids = tiny_model(seed=0), torch.arange(4, 16).reshape(2, 6)
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    try:
        found = loss(student(ids), ids)
    except SignalError as error:
        assert "labels" not in str(error).split(".")[0]
    else:
        assert found.isfinite()
