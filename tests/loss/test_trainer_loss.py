"""The loss inside transformers' Trainer: what it reads of the student's call, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.errors import SignalError


def test_ids_given_by_position_are_read_as_those_given_by_name():
    student, ids = tiny_model(seed=0), torch.arange(4, 16).reshape(2, 6)
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    by_name = loss(student(input_ids=ids), ids)
    assert by_name > 0
    torch.testing.assert_close(loss(student(ids), ids), by_name)


def test_a_student_that_has_not_run_is_named():
    student, ids = tiny_model(), torch.arange(4, 10)[None]
    with pytest.raises(SignalError, match="the student has not run"):
        TrainerLoss(student, tiny_model(), DistillationLoss())(SimpleNamespace(logits=None), ids)


class Recorded(nn.Module):
    """A student that keeps no parameters and answers with given logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


class Elsewhere:
    """Ids on another device, which says where they are moved to."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids, self.shape, self.moved = ids, ids.shape, []

    def to(self, device: torch.device) -> torch.Tensor:
        self.moved.append(device)
        return self.ids


def test_inputs_are_moved_to_the_teachers_device():
    """The Trainer moves the student only, and the teacher reads the student's inputs."""
    ids = torch.tensor([[1, 10, 11, 20]])
    teacher, student = tiny_model(seed=1), Recorded(tiny_model()(input_ids=ids).logits)
    loss = TrainerLoss(student, teacher, DistillationLoss())
    here, far = loss(student(input_ids=ids), ids), Elsewhere(ids)
    torch.testing.assert_close(loss(student(input_ids=far), ids), here)
    assert far.moved == [torch.device("cpu")]


def test_replicas_in_one_process_are_refused():
    student = tiny_model()
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    ids = torch.tensor([[1, 10, 11, 20], [1, 10, 11, 21], [1, 12, 11, 20], [1, 13, 11, 21]])
    halves = [student(input_ids=half).logits for half in ids.split(2)]
    with pytest.raises(SignalError, match="torchrun"):
        loss(SimpleNamespace(logits=torch.cat(halves)), ids)


def test_named_token_weights_are_refused_because_the_trainer_divides_by_tokens():
    with pytest.raises(SignalError, match="named token weights"):
        TrainerLoss(tiny_model(), tiny_model(), DistillationLoss(token_weights="entropy"))
