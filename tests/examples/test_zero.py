"""The loss beside a student that DeepSpeed keeps in parts, as far as a CPU can prove it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import deepspeed

from builders.scripts import ROOT
from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss

ZERO3 = ROOT / "examples/zero3.json"
quiet = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
)


class Config(HfDeepSpeedConfig):  # type: ignore[misc]
    """What transformers' Trainer does with the file; its own class cannot be made without deepspeed."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.mismatches: list[str] = []

    is_auto = deepspeed.HfTrainerDeepSpeedConfig.is_auto
    fill_match = deepspeed.HfTrainerDeepSpeedConfig.fill_match
    fill_only = deepspeed.HfTrainerDeepSpeedConfig.fill_only
    trainer_config_process = deepspeed.HfTrainerDeepSpeedConfig.trainer_config_process
    trainer_config_finalize = deepspeed.HfTrainerDeepSpeedConfig.trainer_config_finalize


@quiet
def test_the_trainer_takes_the_configuration_and_fills_it_in(tmp_path):
    config = Config(str(ZERO3))
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, use_cpu=True, report_to="none"
    )  # fmt: skip
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, tiny_model(), 10)
    assert config.is_zero3()
    assert config.mismatches == []
    assert "auto" not in json.dumps(config.config)
    assert config.config["train_micro_batch_size_per_gpu"] == 4
    assert config.config["gradient_accumulation_steps"] == 2
    assert config.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save")


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Weights that are there inside alone; outside each is empty, as ZeRO-3 leaves them."""
    for parameter in model.parameters():
        if hasattr(parameter, "whole"):
            parameter.data = parameter.whole
    yield
    for parameter in model.parameters():
        parameter.whole = parameter.data  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)


def test_the_loss_reads_no_weight_of_a_student_in_parts():
    """Weights are gathered for the forward and for the backward pass; between them the loss has logits alone."""
    student, teacher = tiny_model(seed=0, tie=True), tiny_model(seed=1)
    ids = torch.arange(4, 16).reshape(2, 6)
    labels = torch.where(ids % 6 < 2, -100, ids)
    tokens = int((labels[:, 1:] >= 0).sum())
    whole = copy.deepcopy(student)
    expected = TrainerLoss(whole, teacher, DistillationLoss("jsd"))(whole(input_ids=ids), labels, tokens)
    expected.backward()
    with gathered(student):
        pass
    loss = TrainerLoss(student, teacher, DistillationLoss("jsd"))
    with gathered(student):
        outputs = student(input_ids=ids)
    assert all(parameter.numel() == 0 for parameter in student.parameters())
    value = loss(outputs, labels, tokens)
    assert torch.equal(value, expected)
    with gathered(student):
        value.backward()
        for parameter, other in zip(student.parameters(), whole.parameters(), strict=True):
            assert torch.equal(parameter.grad, other.grad)


@pytest.mark.gpu
@pytest.mark.skipif(
    find_spec("deepspeed") is None or torch.cuda.device_count() < 2,
    reason="needs deepspeed and two CUDA devices",
)
def test_deepspeed_trains_the_example(places: list[str]):
    """On two GPUs, with the loss of the same rows and steps without DeepSpeed."""
    script = ROOT / "examples/with_trainer.py"
    run: list[Any] = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script, *places]
    logged = []
    for config in ([], [ZERO3]):
        done = subprocess.run([*run, *config], capture_output=True, text=True, check=True)
        losses = [line for line in done.stdout.splitlines() if "'loss'" in line]
        logged.append([float(line.split("'loss':")[1].split(",")[0].strip(" '")) for line in losses])
    assert logged[0]
    assert logged[1] == pytest.approx(logged[0], rel=1e-3)
