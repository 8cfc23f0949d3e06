"""The loss in a plain Trainer and in a plain torch loop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from builders import scripts
from builders.tiny import tiny_model, tiny_tokenizer
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.errors import SignalError


@torch.no_grad()
def mean_kl(student, teacher, places: list[str]) -> float:
    """KL(teacher‖student) in nats, mean over the answers' tokens of the rows, from whole logits."""
    student.eval()
    tokenizer, total, count = tiny_tokenizer(), 0.0, 0
    for row in map(json.loads, Path(places[2]).read_text().splitlines()):
        prompt = tokenizer(f"<s>{row['prompt']} |", add_special_tokens=False).input_ids
        answer = [*tokenizer(row["response"], add_special_tokens=False).input_ids, 2]
        ids = torch.tensor([prompt + answer])
        q, p = (m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for m in (student, teacher))
        total += float((p.exp() * (p - q)).sum())
        count += len(answer)
    return total / count


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_trainer_distils_and_logs_the_loss_per_token(places):
    trainer = scripts.load("examples/with_trainer.py").main(*places)
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    teacher = tiny_model(seed=1)
    wanted = mean_kl(tiny_model(layers=1, seed=2), teacher, places)
    assert sum(logged) / 2 == pytest.approx(wanted, rel=0.05)
    assert mean_kl(trainer.model, teacher, places) < wanted


def test_the_torch_loop_distils(places):
    teacher = tiny_model(seed=1)
    losses = scripts.load("examples/with_torch.py").main(*places)
    assert len(losses) == 16
    assert all(0 < value < 1 for value in losses)
    student = AutoModelForCausalLM.from_pretrained(places[3])
    assert mean_kl(student, teacher, places) < mean_kl(tiny_model(layers=1, seed=2), teacher, places)


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


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["with_torch", "with_trainer", "loop"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_row_with_a_character_that_looks_like_a_line_break_is_one_row(places, name, mark):
    row = json.dumps({"prompt": f"w20{mark}w21", "response": "w30"}, ensure_ascii=False)
    Path(places[2]).write_text(row.replace("\x0c", "\\f") + "\r\n\n", encoding="utf-8")
    scripts.load(f"examples/{name}.py").main(*places)
    assert (Path(places[3]) / "model.safetensors").is_file()
