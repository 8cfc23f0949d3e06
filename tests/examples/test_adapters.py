"""The loss in a plain Trainer and in a plain torch loop."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.errors import SignalError
from tiny import save_tiny, tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"


def page(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def places(tmp_path) -> list[str]:
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student", seed=2)
    rows = [
        {"prompt": f"w{20 + i}", "response": " ".join(f"w{30 + i + j}" for j in range(1 + i % 4))}
        for i in range(16)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return [str(tmp_path / name) for name in ("teacher", "student", "rows.jsonl", "out")]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_trainer_distils_and_logs_the_loss_per_token(places):
    trainer = page("with_trainer").main(*places)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    assert all(0 < value < 20 for value in logged)


def test_the_torch_loop_distils(places):
    losses = page("with_torch").main(*places)
    assert len(losses) == 16
    assert all(0 < value < 20 for value in losses)
    assert (Path(places[3]) / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["with_trainer", "with_torch"])
def test_the_examples_fit_on_a_page(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60


def test_accumulation_divides_by_the_windows_tokens():
    student, teacher = tiny_model(seed=0), tiny_model(seed=1)
    loss = TrainerLoss(student, teacher, DistillationLoss())
    ids = torch.arange(4, 16).reshape(2, 6)
    labels = torch.tensor([[-100, -100, -100, 7, 8, 9], [-100, -100, -100, -100, -100, 15]])
    whole = loss(student(input_ids=ids), labels, num_items_in_batch=4)
    split = sum(
        loss(student(input_ids=ids[i : i + 1]), labels[i : i + 1], num_items_in_batch=4) for i in range(2)
    )
    torch.testing.assert_close(whole, split)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_batch_without_labels_is_refused():
    student = tiny_model()
    loss = TrainerLoss(student, tiny_model(seed=1), DistillationLoss())
    with pytest.raises(SignalError, match="gave no labels"):
        loss(student(input_ids=torch.ones(1, 3, dtype=torch.long)), None)
