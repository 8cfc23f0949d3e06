"""Two models in one process: what is measured leaves every sub-module in its own mode."""

from __future__ import annotations

from typing import Any

import pytest

from builders.losses import divergence, token_loss
from builders.steps import local_teacher, ragged_rows
from builders.tiny import tiny_model
from potstill.evaluate.scores import score
from potstill.models import anatomy
from potstill.train import packing
from potstill.train.step import StudentModule
from potstill.train.validation import Validation


def validate(model: Any) -> None:
    module = StudentModule(model, 128)
    Validation(ragged_rows(3), local_teacher(), token_loss(), None, tokens=200, pad_id=0)(module)


def evaluate(model: Any) -> None:
    kinds = {name: divergence(name) for name in ("forward_kl", "reverse_kl")}
    score(model, local_teacher(), ragged_rows(3), vocabulary=128, pad_id=0, **kinds)


def prove(model: Any) -> None:
    packing.prove(model, ragged_rows(3), 0)


def fail(model: Any) -> None:
    """A measurement that ends with an exception."""
    model.model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        anatomy.head_form(model)
    with pytest.raises(ZeroDivisionError):
        prove(model)


@pytest.mark.parametrize("use", [validate, evaluate, prove, anatomy.head_form, fail])
@pytest.mark.parametrize("trains", [True, False])
def test_a_part_that_is_in_another_mode_than_its_model_stays_in_it(use, trains):
    model = tiny_model().train(trains)
    model.model.layers[1].train(not trains)
    before = [part.training for part in model.modules()]
    use(model)
    assert [part.training for part in model.modules()] == before
