"""What a training stage minimises follows its options, which are refused before training."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from potstill import DistillationLoss
from potstill.errors import PotstillError, RecipeError
from potstill.objectives.fused import logits_loss
from potstill.recipe.recipe import parse_recipe
from potstill.signals.dense import Dense
from potstill.stages._objective import objective_of
from potstill.stages.distill import Distill


def test_token_weights_are_refused_where_the_hard_label_share_reaches_one():
    with pytest.raises(ValidationError, match="token_weights"):
        Distill.model_validate(
            {"ce_weight": {"linear": {"from": 0.0, "to": 1.0}}, "token_weights": "entropy", "steps": 4}
        )


def test_an_option_of_a_token_weight_out_of_range_is_refused_before_training():
    stage = Distill.model_validate({"token_weights": {"entropy": {"floor": 2.0}}, "steps": 4})
    with pytest.raises(RecipeError, match="floor is 2.0"):
        objective_of(stage)


def test_sampling_settings_do_not_reach_the_loss():
    """A sampling temperature is no option of the loss, and a recipe's does not move its objective."""
    with pytest.raises(PotstillError, match="sampling_temperature"):
        DistillationLoss("forward_kl", sampling_temperature=0.7)
    for sampling in (0.7, 1.3):
        recipe = parse_recipe(
            {
                "teacher": {"model": "teacher"},
                "student": {"from_teacher": {"keep_layers": 2}},
                "data": {"train": "rows.jsonl"},
                "stages": [
                    {"generate": {"sampling_temperature": sampling}},
                    {"distill": {"temperature": 1.0}},
                ],
            }
        )
        loss = objective_of(recipe.stages[1]).at(0, 4)
        out = logits_loss(torch.ones(1, 3), loss.rowwise(Dense(torch.tensor([[2.0, 1.0, 0.0]]))))
        assert out.sum.item() == pytest.approx(0.266217, abs=1e-6)
