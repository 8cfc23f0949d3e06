"""Divergences and token weights from outside the package stand where built-in ones do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import potstill
from builders.tiny import save_tiny
from potstill import DistillationLoss
from potstill.errors import RecipeError, RecipeErrors, SignalError, TrainingStopped
from potstill.signals.sampled import Sampled
from potstill.signals.topk import TopK
from potstill.types import Loss

SOURCE = '''
"""The Bhattacharyya distance, -log of the sum of sqrt(p q): half the Renyi divergence of order 1/2."""

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True


def bhatt(student_lp, teacher_lp, *, scale: float = 1.0):
    if scale <= 0:
        from potstill.errors import RecipeError

        raise RecipeError(f"scale is {scale}.", fix="Give it above 0.")
    return -scale * ((student_lp + teacher_lp) / 2).logsumexp(-1)


def with_partial(student_lp, teacher_lp, *, scale: float = 1.0):
    half = (student_lp + teacher_lp) / 2
    return -scale * half.logsumexp(-1), -scale * half.softmax(-1) / 2


def below(student_lp, teacher_lp):
    return -bhatt(student_lp, teacher_lp) - 1


def late(student_lp, teacher_lp, place, *, first: float = 0.0):
    return (place > 0) + first * (place == 0)
'''
BOTH = pytest.mark.parametrize("name", ["bhatt_for_a_test:bhatt", "bhatt_for_a_test:with_partial"])


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bhatt_for_a_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def of(loss: DistillationLoss, **arguments: object) -> tuple[Loss, torch.Tensor]:
    """The loss of six positions of eleven ids, and its gradient by the student's logits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 6, 11, dtype=torch.float64, generator=generator)
    out = loss.from_logits(student.requires_grad_(), teacher, **{"mask": torch.ones(1, 6)} | arguments)
    return out, torch.autograd.grad(out.sum, student)[0]


@BOTH
def test_a_divergence_has_the_value_and_the_gradient_of_its_built_in_twin(name):
    out, gradient = of(DistillationLoss(name, scale=2.0, temperature=1.5))
    twin, right = of(DistillationLoss("renyi", r=0.5, temperature=1.5))
    torch.testing.assert_close(out.sum, twin.sum)
    torch.testing.assert_close(gradient, right)


@BOTH
def test_the_constants_of_its_module_count(name):
    labels = torch.arange(6)[None]
    mixed, twin = (
        of(DistillationLoss(n, temperature=2.0, ce_weight=0.3, **options), mask=None, labels=labels)[0]
        for n, options in ((name, {"scale": 2.0}), ("renyi", {"r": 0.5}))
    )
    torch.testing.assert_close(mixed.sum, twin.sum)
    lp = torch.randn(3, 11).log_softmax(-1)
    ids = lp.topk(4).indices
    stored = TopK(ids, lp.gather(1, ids))
    same = DistillationLoss(name).from_logits(lp, stored, torch.ones(3))
    assert abs(float(same.sum)) < 1e-5
    drawn = Sampled(ids, torch.ones_like(ids), torch.zeros(3))
    with pytest.raises(SignalError, match=r"does not support sampled signals, only: dense, topk"):
        DistillationLoss(name).from_logits(lp, drawn, torch.ones(3))


def test_a_divergence_that_says_it_vanishes_is_held_to_it():
    with pytest.raises(TrainingStopped, match="bhatt_for_a_test:below is .* which no divergence can be"):
        of(DistillationLoss("bhatt_for_a_test:below"))


@BOTH
def test_options_are_refused_when_the_loss_is_made(name):
    with pytest.raises(RecipeErrors, match="unknown option; did you mean scale"):
        DistillationLoss(name, scal=2.0)
    if name.endswith("bhatt"):
        with pytest.raises(RecipeError, match="scale is 0"):
            DistillationLoss(name, scale=0.0)


def test_a_token_weight_weighs_as_numbers_given_by_hand_do():
    weights = torch.tensor([[0.5, 1.0, 1.0, 1.0, 1.0, 1.0]])
    named, gradient = of(DistillationLoss(token_weights={"bhatt_for_a_test:late": {"first": 0.5}}))
    given, right = of(DistillationLoss(), weights=weights)
    torch.testing.assert_close(named.mean, given.mean)
    torch.testing.assert_close(gradient, right)
    with pytest.raises(SignalError, match="token_weights names 2"):
        DistillationLoss(token_weights={"bhatt_for_a_test:late": {}, "position": {}})


def test_a_recipe_trains_with_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "teacher")
    rows = [{"prompt": f"w{20 + i} w{12 + i}", "response": f"w{30 + i} w{40 + i}"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        "teacher: {model: teacher}\n"
        "student: {from_teacher: {keep_layers: 1, by: uniform}}\n"
        "data: {train: rows.jsonl}\n"
        "stages:\n"
        "  - distill:\n"
        "      steps: 2\n"
        "      divergence: {'bhatt_for_a_test:with_partial': {scale: {linear: {from: 1.0, to: 2.0}}}}\n"
        "      token_weights: {'bhatt_for_a_test:late': {first: 0.25}}\n"
    )
    result = potstill.run("r.yaml")
    events = (Path(result.path) / "stages/distill/metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, events) if event["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2]
    assert all(step["divergence"] > 0 for step in steps)
