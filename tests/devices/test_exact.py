"""Sums on a device without float64 are those of one that has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from builders.losses import divergence, token_loss
from builders.single import NoFloat64, without_float64
from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.adapters import TrainerLoss
from potstill.data.batch import collate
from potstill.devices import exact
from potstill.evaluate import scores
from potstill.signals.topk import TopK
from potstill.train.step import StepResult, StudentModule, accumulate
from potstill.train.validation import Validation


class Stored:
    """A teacher of stored top-k targets, of which it has more ids than the student."""

    def __init__(self) -> None:
        self._teacher = local_teacher()

    def signal(self, batch: Any) -> TopK:
        hidden = self._teacher.signal(batch)
        lp, ids = (hidden.hidden @ hidden.head.weight.t()).log_softmax(-1).topk(8)
        return TopK(ids, lp, vocabulary=128)


def step(teacher: Any, vocabulary: int = 128, **settings: Any) -> tuple[StepResult, list[torch.Tensor]]:
    """One optimizer step in two micro-batches and one that scores nothing; its result and gradients."""
    rows = ragged_rows()
    module = StudentModule(tiny_model(seed=0), vocabulary, chunk_bytes=2**14)
    batches = [collate(part, pad_id=0) for part in (rows[:4], rows[4:], [rows[0].silent()])]
    result = accumulate(module, teacher, batches, token_loss(**settings))
    assert result is not None
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return result, [parameter.detach() for parameter in module.parameters()]


LOSSES = {
    "forward KL": {"name": "forward_kl"},
    "JSD with hard labels": {"name": "jsd", "ce_weight": 0.3, "temperature": 2.0},
    "named weights": {"name": "forward_kl", "weigh": lambda s, t, place: 1.0 / (1.0 + place)},
}


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES)
def test_a_training_step_needs_no_float64_on_its_device(monkeypatch, settings):
    expected, weights = step(local_teacher(), **settings)
    with without_float64(monkeypatch) as device:
        result, got = step(local_teacher(), **settings)
    assert result == expected
    assert all(map(torch.equal, got, weights))
    assert device.crossed > 3  # sums, in every micro-batch


def test_a_step_from_stored_targets_needs_no_float64_on_its_device(monkeypatch):
    expected, weights = step(Stored(), vocabulary=120)
    with without_float64(monkeypatch):
        result, got = step(Stored(), vocabulary=120)
    assert result == expected
    assert all(map(torch.equal, got, weights))


def test_validation_needs_no_float64_on_its_device(monkeypatch):
    validation = Validation(
        ragged_rows(), local_teacher(), token_loss("jsd"), token_loss(), tokens=40, pad_id=0
    )
    module = StudentModule(tiny_model(seed=0), 128)
    expected = validation(module)
    with without_float64(monkeypatch) as device:
        assert validation(module) == expected
    assert device.crossed > 3


def test_scores_of_an_evaluation_need_no_float64_on_their_device(monkeypatch):
    def score() -> scores.Scores:
        kl = {name: divergence(name) for name in ("forward_kl", "reverse_kl")}
        settings = {"vocabulary": 128, "pad_id": 0, "batch_tokens": 40}
        return scores.score(tiny_model(seed=0), local_teacher(), ragged_rows(), **kl, **settings)

    expected = score()
    with without_float64(monkeypatch):
        assert score() == expected


def test_a_divergence_near_its_limit_needs_no_float64_on_its_device(monkeypatch):
    """Close to α = 0 quotients are taken in float64, and come back as float32."""
    near, logits = divergence("alpha_beta", alpha=1e-4, beta=1.0), torch.randn(2, 3, 7)

    def value() -> torch.Tensor:
        return near.value(*logits.log_softmax(-1))

    expected = value()
    with without_float64(monkeypatch):
        assert torch.equal(value(), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_in_a_loop_of_ones_own_needs_no_float64_on_its_device(monkeypatch, weighted):
    logits, labels = torch.randn(2, 1, 9, 32), torch.randint(0, 32, (1, 9))
    weights = torch.rand(1, 9) if weighted else None
    loss = DistillationLoss("jsd", ce_weight=0.2)

    def mean() -> torch.Tensor:
        return loss.from_logits(*logits, labels=labels, weights=weights, metrics=True).mean

    expected = mean()
    with without_float64(monkeypatch):
        assert torch.equal(mean(), expected)


@torch.no_grad()
def test_the_trainers_evaluation_needs_no_float64_on_its_device(monkeypatch):
    student, teacher, ids = tiny_model(seed=0), tiny_model(seed=1), torch.randint(4, 128, (2, 9))

    def mean() -> float:
        loss = TrainerLoss(student, teacher, DistillationLoss())
        loss(student(input_ids=ids), ids)
        return loss.token_mean()

    expected = mean()
    with without_float64(monkeypatch):
        assert mean() == expected


def test_the_simulated_device_refuses_float64():
    with NoFloat64():
        values = torch.ones(3, device="cpu:0")
        with pytest.raises(AssertionError, match="float64 on the device"):
            values.double()
        with pytest.raises(AssertionError, match="float64 on the device"):
            values.sum(dtype=torch.float64)
        with pytest.raises(AssertionError, match="mixes"):
            values + values.to(exact.HOST)
        assert float(values.to(exact.HOST).double().sum()) == 3
