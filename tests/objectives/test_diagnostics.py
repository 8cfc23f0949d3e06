"""A target that cannot be met is refused with its position and its id."""

from __future__ import annotations

import math

import pytest
import torch

from builders.losses import token_loss
from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.data.batch import collate
from potstill.errors import NotFinite, TrainingStopped
from potstill.teachers.fixed import FixedTeacher
from potstill.train.step import StudentModule, accumulate
from potstill.types import Example, Head


def test_every_id_that_makes_a_loss_infinite_is_named():
    student, teacher = torch.zeros(2, 6), torch.zeros(2, 6)
    student[1, 3], teacher[1, 5] = -math.inf, -math.inf
    with pytest.raises(NotFinite, match="scored position 1.*id 3.*id 5"):
        DistillationLoss("reverse_kl").from_logits(student, teacher, torch.ones(2))


@pytest.mark.parametrize("mode", ["eval", "store"])
def test_an_impossible_target_is_refused_in_evaluation_too(mode):
    hidden, weight = torch.randn(1, 3, 4), torch.randn(8, 4)
    forbids = Head(weight, 8, torch.tensor([0.0] * 7 + [-math.inf]))
    with pytest.raises(
        NotFinite, match=r"scored position 0: the student gives no mass to id 7, the teacher does"
    ):
        DistillationLoss(mode=mode)(hidden, forbids, hidden, weight, torch.ones(1, 3))


def test_training_stops_at_an_impossible_target_and_names_its_id():
    """Besides the rows, the id that the student forbids is named."""
    student = tiny_model()
    student.lm_head = torch.nn.Linear(32, 128, bias=True)
    student.lm_head.bias.data[5] = -math.inf
    batch = collate([Example("r", tuple(range(4, 14)), tuple(i > 4 for i in range(10)))], pad_id=0)
    teacher = FixedTeacher(lambda b: torch.zeros(b.count, 128))
    with pytest.raises(TrainingStopped, match=r"\bid 5\b"):
        accumulate(StudentModule(student, 128), teacher, [batch], token_loss())
