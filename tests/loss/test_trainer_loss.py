"""The loss inside transformers' Trainer: what it reads of the student's call, and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

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


def shares_all(student):
    return student


def shares_the_head(student):
    teacher = tiny_model(seed=1)
    teacher.lm_head = student.lm_head
    return teacher


def shares_memory(student):
    teacher = tiny_model(seed=1)
    teacher.lm_head.weight = nn.Parameter(student.lm_head.weight.data)
    return teacher


def is_the_base_of_an_adapter(student):
    return student.get_base_model()


@pytest.mark.parametrize("sharing", [shares_all, shares_the_head, shares_memory, is_the_base_of_an_adapter])
@pytest.mark.parametrize("path", ["trainer", "loop"])
def test_a_teacher_that_shares_a_trained_parameter_is_refused(sharing, path):
    student = tiny_model()
    if sharing is is_the_base_of_an_adapter:
        student = get_peft_model(student, LoraConfig(r=2, target_modules=["q_proj"]))
    teacher, trained = sharing(student), [p.requires_grad for p in student.parameters()]
    hidden, mask = torch.ones(1, 3, 32), torch.ones(1, 3)

    def use() -> None:
        if path == "trainer":
            TrainerLoss(student, teacher, DistillationLoss())
        else:
            DistillationLoss()(hidden, student, hidden, teacher, mask)

    with pytest.raises(SignalError, match=r"teacher and student share .*, which is trained"):
        use()
    assert [p.requires_grad for p in student.parameters()] == trained


class Disturbing(nn.Module):
    """A teacher over the student's frozen base that switches modes and adapters and may fail."""

    def __init__(self, student: Any, fails: bool) -> None:
        super().__init__()
        self.frozen, self.student, self.fails = tiny_model(seed=1), [student], fails

    def forward(self, **inputs: Any) -> Any:
        (student,) = self.student
        student.eval()
        student.base_model.disable_adapter_layers()
        if self.fails:
            raise RuntimeError("the teacher fails")
        return self.frozen(**inputs)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_adapters_are_as_before_after_the_teachers_call(fails):
    student = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5))
    student.train()
    student.get_base_model().model.layers[0].eval()
    loss = TrainerLoss(student, Disturbing(student, fails), DistillationLoss())
    ids = torch.arange(4, 10)[None]
    outputs = student(input_ids=ids)

    def state() -> list[Any]:
        layers = [m for m in student.modules() if hasattr(m, "enable_adapters")]
        return [
            [m.training for m in student.modules()],
            [p.requires_grad for p in student.parameters()],
            [(m.disable_adapters, m.active_adapters) for m in layers],
        ]

    before = state()
    if fails:
        with pytest.raises(RuntimeError, match="the teacher fails"):
            loss(outputs, ids)
    else:
        loss(outputs, ids).backward()
    assert state() == before


def test_a_teacher_may_share_what_is_frozen():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    teacher.model.embed_tokens = student.model.embed_tokens
    student.model.embed_tokens.requires_grad_(False)
    student.train()
    loss = TrainerLoss(student, teacher, DistillationLoss())
    ids = torch.arange(4, 10)[None]
    loss(student(input_ids=ids), ids).backward()
    assert all(part.training for part in student.modules())
    assert student.lm_head.weight.requires_grad


class Rows(torch.utils.data.Dataset):
    """Rows of unequal length."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = list(range(4, 7 + 2 * index))
        return {"input_ids": ids, "labels": ids}


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": torch.tensor([r["input_ids"] + [0] * (longest - len(r["input_ids"])) for r in rows]),
        "labels": torch.tensor([r["labels"] + [-100] * (longest - len(r["labels"])) for r in rows]),
    }


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_an_evaluation_has_the_same_token_mean_at_every_batch_size(tmp_path, caplog):
    student, means = tiny_model(seed=0), []
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    for size in (1, 2, 3, 8):
        arguments = TrainingArguments(
            tmp_path, per_device_eval_batch_size=size, report_to="none", use_cpu=True
        )
        trainer = Trainer(student, arguments, data_collator=padded, compute_loss_func=loss)
        assert math.isnan(trainer.evaluate(Rows())["eval_loss"])
        means.append(loss.token_mean())
    assert means == pytest.approx([means[0]] * 4, rel=1e-6)
    assert means[0] > 0
    assert math.isnan(loss.token_mean())
    assert [record.message for record in caplog.records if "withheld" in record.message] == [
        "eval_loss is withheld: the Trainer averages the means of batches, which depends on their size; "
        "read TrainerLoss.token_mean() after evaluate()"
    ]


def test_a_training_step_forgets_what_was_evaluated_before():
    student, ids = tiny_model(seed=0), torch.arange(4, 10)[None]
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    with torch.no_grad():
        loss(student(input_ids=ids), ids)
    loss(student(input_ids=ids), ids, num_items_in_batch=5)
    assert math.isnan(loss.token_mean())
