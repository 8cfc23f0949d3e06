"""What holds of one family holds of all: a cut student is distilled, saved and loaded, and its loss is that of its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from builders import jobs
from builders.families import FAMILIES, model_of
from potstill import DistillationLoss
from potstill.models import loading
from potstill.students import depth
from potstill.types import Example

KEPT = [0, 2, 3, 5]
IDS = torch.randint(4, 128, (2, 20), generator=torch.Generator().manual_seed(1))
LABELS = torch.where(IDS % 5 == 0, -100, IDS)
ROWS = [
    Example(f"r{i}", tuple(row), (False,) * 5 + (True,) * 15)
    for i, row in enumerate(
        torch.randint(4, 128, (4, 20), generator=torch.Generator().manual_seed(2)).tolist()
    )
]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_student_is_distilled_and_loads_as_it_was_trained(tmp_path, monkeypatch, family):
    teacher = model_of(family)
    start = jobs.student(tmp_path / "s", depth.cut(teacher, KEPT))
    kept: list[Any] = []
    save = loading.save

    def spy(model: Any, tokenizer: Any, folder: Any) -> None:
        kept.append(model)
        save(model, tokenizer, folder)

    monkeypatch.setattr(loading, "save", spy)
    made = jobs.trained(tmp_path, start, jobs.Memory(teacher), ROWS, steps=2, learning_rate=1e-3)
    before, after = (event["loss"] for event in jobs.events(made.path, "step"))
    assert after < before
    loaded = AutoModelForCausalLM.from_pretrained(made.path / "student")
    with torch.no_grad():
        logits = kept[-1].eval()(IDS).logits
        torch.testing.assert_close(loaded(IDS).logits, logits, atol=1e-5, rtol=1e-5)
        ours = loading.load(loading.find_source(str(made.path / "student")), dtype=torch.float32).model
        torch.testing.assert_close(ours(IDS).logits, logits, atol=1e-5, rtol=1e-5)
        assert (logits - depth.cut(teacher, KEPT)(IDS).logits).abs().max() > 1e-3


def kl_of_logits(student: Any, teacher: Any) -> torch.Tensor:
    """KL(teacher‖student) per scored token, from whole logits."""
    q, p = (model(IDS).logits[:, :-1][LABELS[:, 1:] != -100].log_softmax(-1) for model in (student, teacher))
    return (p.detach().exp() * (p.detach() - q)).sum(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_an_own_loop_is_that_of_the_models_own_logits(family):
    """By the call that the README shows; both in float64."""
    student, teacher = (model_of(family, seed, torch.float64) for seed in (0, 1))
    hidden = [model.base_model(IDS).last_hidden_state for model in (student, teacher)]
    out = DistillationLoss()(hidden[0], student, hidden[1], teacher, labels=LABELS)
    wanted = kl_of_logits(student, teacher)
    assert int(out.count) == len(wanted)
    torch.testing.assert_close(out.sum, wanted.sum(), rtol=1e-9, atol=0)
    weight = student.get_output_embeddings().weight
    gradients = [torch.autograd.grad(value, weight)[0] for value in (out.sum, wanted.sum())]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
