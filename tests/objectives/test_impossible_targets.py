"""Impossible targets and losses below zero are refused in the drop-in loss and in training."""

from __future__ import annotations

import math
import types

import pytest
import torch

from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.errors import PotstillError, TrainingStopped
from potstill.objectives.token import Divergence, TokenLoss
from potstill.teachers.fixed import FixedTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example


def test_an_impossible_target_is_refused_with_its_id():
    """A student that forbids an id which the teacher uses: an error that names position and id, not inf."""
    student, teacher = (
        torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, -math.inf]]),
        torch.tensor([[2.0, 1.0, 0.0]] * 2),
    )
    with pytest.raises(PotstillError, match=r"\bid 2\b"):
        DistillationLoss().from_logits(student, teacher, torch.ones(2))


def test_training_stops_at_an_impossible_target_and_names_its_id():
    """Besides the rows, the id that the student forbids is named."""
    student = tiny_model()
    student.lm_head = torch.nn.Linear(32, 128, bias=True)
    student.lm_head.bias.data[5] = -math.inf
    batch = collate([Example("r", tuple(range(4, 14)), tuple(i > 4 for i in range(10)))], pad_id=0)
    loss = TokenLoss(Divergence.from_module(forward_kl))
    with pytest.raises(TrainingStopped, match=r"\bid 5\b"):
        accumulate(
            StudentModule(student, 128), FixedTeacher(lambda b: torch.zeros(b.count, 128)), [batch], loss
        )


def test_a_negative_divergence_is_refused_by_the_drop_in_loss():
    """A divergence that vanishes at equality and is below -1e-6 is refused there as it is in training."""
    wrong = types.ModuleType("wrong_sign_for_a_test")
    wrong.value = lambda student_lp, teacher_lp: -forward_kl.value(student_lp, teacher_lp)  # type: ignore[attr-defined]
    wrong.VANISHES = True  # type: ignore[attr-defined]
    loss = DistillationLoss()
    loss.token_loss = TokenLoss(Divergence.from_module(wrong))
    with pytest.raises(PotstillError, match="no divergence can be"):
        loss.from_logits(torch.randn(3, 5), torch.randn(3, 5), torch.ones(3))
