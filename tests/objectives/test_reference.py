"""The distance to frozen weights, computed inside the term."""

from __future__ import annotations

import pytest

from builders.losses import token_loss
from builders.rollouts import batch_of, row
from builders.steps import local_teacher
from builders.tiny import tiny_model
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.reference import AgainstFrozen
from potstill.train.step import StudentModule, accumulate

OWN, DATA = row("own", (1, 9, 8), (7, 6, 5)), row("data", (1, 9), (4, 8), origin="data")


def step(student, term, *rows):
    module = StudentModule(student, 128)
    result = accumulate(module, local_teacher(), [batch_of(*rows)], [(1.0, term)])
    return result, max(float(p.grad.abs().max()) for p in module.parameters() if p.grad is not None)


def against(model):
    return ByOrigin(AgainstFrozen(token_loss("reverse_kl"), local_teacher(model)), True, "reference_")


def test_it_is_the_divergence_from_the_frozen_model_not_from_the_teacher():
    result, _ = step(tiny_model(seed=0), against(tiny_model(seed=5)), OWN)
    module = StudentModule(tiny_model(seed=0), 128)
    wanted = accumulate(module, local_teacher(tiny_model(seed=5)), [batch_of(OWN)], token_loss("reverse_kl"))
    assert result.loss == pytest.approx(wanted.loss, rel=1e-6)
    assert result.means()["reference_divergence"] == pytest.approx(wanted.loss / 3, rel=1e-6)


def test_a_student_that_has_not_moved_has_no_distance():
    result, gradient = step(tiny_model(seed=0), against(tiny_model(seed=0)), OWN, DATA)
    assert result.loss == pytest.approx(0.0, abs=1e-9)
    assert gradient < 1e-6


def test_a_step_on_the_data_alone_asks_nothing_of_it():
    class Silent:
        def signal(self, batch):
            pytest.fail("asked")

    term = ByOrigin(AgainstFrozen(token_loss("reverse_kl"), Silent()), True)
    module = StudentModule(tiny_model(seed=0), 128)
    terms = [(1.0, token_loss()), (1.0, ByOrigin(term, True, "reference_"))]
    alone = accumulate(module, local_teacher(), [batch_of(DATA)], terms)
    module.zero_grad(set_to_none=True)
    assert alone.loss == accumulate(module, local_teacher(), [batch_of(DATA)], token_loss()).loss
