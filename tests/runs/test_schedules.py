"""Options of a divergence that move over the stage, and a share of hard labels that ends at zero."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from potstill.errors import RecipeError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.recipe.recipe import parse_recipe
from potstill.signals.dense import Dense
from potstill.stages._objective import objective_of

STEPS = 5


def losses(**distill: Any) -> list[TokenLoss]:
    recipe = parse_recipe(
        {
            "teacher": {"model": "teacher"},
            "student": {"from_teacher": {"keep_layers": 2}},
            "data": {"train": "rows.jsonl"},
            "stages": [{"distill": distill}],
        }
    )
    objective = objective_of(recipe.stages[0])
    return [objective.at(step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("name", "option", "start", "end"),
    [
        ("taid", "t", 0.4, 1.0),
        ("jsd", "beta", 0.1, 0.9),
        ("skew_kl", "alpha", 0.5, 0.1),
        ("alpha_beta", "alpha", 0.2, 0.6),
    ],
)
def test_an_option_of_a_divergence_follows_its_schedule(name, option, start, end, shape):
    """TAID's t, JSD's beta and an alpha take a schedule as temperature does."""
    schedule = {shape: {"from": start, "to": end}}
    found = [loss.divergence.options[option] for loss in losses(divergence={name: {option: schedule}})]
    left = [1 - i / 4 if shape == "linear" else (1 + math.cos(math.pi * i / 4)) / 2 for i in range(STEPS)]
    assert found == pytest.approx([start * x + end * (1 - x) for x in left])


def test_a_schedule_that_leaves_an_options_range_is_refused():
    """Both ends are checked when the recipe is read."""
    with pytest.raises(RecipeError, match=r"t is 0\.0"):
        losses(divergence={"taid": {"t": {"linear": {"from": 0.0, "to": 1.0}}}})


def test_the_loss_does_not_jump_when_the_share_of_hard_labels_reaches_zero():
    """A share that falls to 0 at T = 2: from one step to the next the loss does not fall to a quarter."""
    student, teacher, label = torch.ones(1, 3), Dense(torch.tensor([[2.0, 1.0, 0.0]])), torch.tensor([0])
    moving = losses(temperature=2.0, ce_weight={"linear": {"from": 1e-3, "to": 0.0}})
    values = [logits_loss(student, loss.rowwise(teacher, label)).sum.item() for loss in moving]
    assert values[-1] == pytest.approx(values[-2], rel=0.05)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (3.0, [3.0] * STEPS),
        ({"linear": {"from": 4.0, "to": 1.0}}, [4.0, 3.25, 2.5, 1.75, 1.0]),
        ({"cosine": {"from": 4.0, "to": 1.0}}, [1 + 1.5 * (1 + math.cos(math.pi * i / 4)) for i in range(5)]),
    ],
)
def test_a_temperature_follows_its_schedule(schedule, wanted):
    """Constant, linear and cosine, from the first step to the last, at every step between."""
    assert [loss.temperature for loss in losses(temperature=schedule)] == pytest.approx(wanted)


def test_a_share_of_hard_labels_follows_its_schedule():
    """Linear and cosine end exactly where they say; the share stays a share."""
    assert [x.ce_weight for x in losses(ce_weight={"linear": {"from": 0.0, "to": 1.0}})] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )
    ends = [x.ce_weight for x in losses(ce_weight={"cosine": {"from": 0.8, "to": 0.2}})]
    assert (ends[0], ends[2], ends[-1]) == pytest.approx((0.8, 0.5, 0.2))
