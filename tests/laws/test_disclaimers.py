"""A divergence that disclaims a law shows where it breaks; one that does not, keeps it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import divergences

LAWS = {"at_equality", "only_at_equality", "merging", "appending", "quadratic"}


def module(name: str) -> Any:
    return importlib.import_module(f"potstill.divergences.{name}")


def value(name: str, student: list[float], teacher: list[float], **options: float) -> float:
    """From two lists of probabilities, which are normalised."""
    s, t = (torch.tensor([x], dtype=torch.float64).log().log_softmax(-1) for x in (student, teacher))
    return module(name).value(s, t, **options).item()


def rises(name: str, student: list[float], teacher: list[float], **options: float) -> bool:
    """Whether merging the last two outcomes increases it."""
    joined = [[*x[:-2], x[-2] + x[-1]] for x in (student, teacher)]
    return value(name, *joined, **options) > value(name, student, teacher, **options) + 1e-3


def moved_by_appending(name: str) -> bool:
    student, teacher = torch.tensor([[1.0, 0.5, 0.0]]).double(), torch.tensor([[2.0, 1.0, 0.0]]).double()
    return not math.isclose(of_logits(name, student, teacher), of_logits(name, wide(student), wide(teacher)))


def wide(logits: Tensor) -> Tensor:
    return torch.cat([logits, torch.full_like(logits, -1e4)], -1)


def of_logits(name: str, student: Tensor, teacher: Tensor, **options: float) -> float:
    return module(name).value(student.log_softmax(-1), teacher.log_softmax(-1), **options).sum().item()


def tempered(name: str, t: float) -> float:
    student, teacher = torch.tensor([[1.0, 0.5, 0.0]]).double(), torch.tensor([[0.0, 1.0, 0.3]]).double()
    return of_logits(name, student / t, teacher / t)


def not_quadratic(name: str) -> bool:
    """Whether T² times the value fails to settle as T grows."""
    return not math.isclose(1e3**2 * tempered(name, 1e3), 2e3**2 * tempered(name, 2e3), rel_tol=0.01)


SURE = [0.98, 0.01, 0.01]
BROKEN: dict[tuple[str, str], Callable[[], bool]] = {
    ("soft_cross_entropy", "at_equality"): lambda: value("soft_cross_entropy", SURE, SURE) > 0.05,
    ("hard_cross_entropy", "at_equality"): lambda: value("hard_cross_entropy", [0.6, 0.4], [0.6, 0.4]) > 0.5,
    ("hard_cross_entropy", "only_at_equality"): lambda: value("hard_cross_entropy", [1.0, 0.0], [0.6, 0.4]) == 0,
    ("standardized_logits", "only_at_equality"): lambda: value("standardized_logits", [1, 2, 4], [1, 4, 16]) < 1e-10,
    ("adaptive_kl", "merging"): lambda: rises("adaptive_kl", [0.481, 0.505, 0.006, 0.008], [0.42, 0.075, 0.315, 0.19]),
    ("alpha_beta", "merging"): lambda: rises("alpha_beta", [0.084, 0.031, 0.346, 0.539], [0.962, 0.014, 0.004, 0.02], alpha=0.6, beta=0.7),
    ("entropy_gated_kl", "merging"): lambda: rises("entropy_gated_kl", [0.026, 0.91, 0.045, 0.019], [0.237, 0.007, 0.323, 0.433]),
    ("taid", "merging"): lambda: rises("taid", [0.077, 0.883, 0.036, 0.004], [0.092, 0.077, 0.041, 0.79]),
    ("logit_mse", "merging"): lambda: rises("logit_mse", [0.007, 0.779, 0.138, 0.076], [0.568, 0.008, 0.166, 0.258]),
    ("standardized_logits", "merging"): lambda: rises("standardized_logits", [0.406, 0.394, 0.087, 0.113], [0.306, 0.299, 0.191, 0.204]),
    ("hard_cross_entropy", "merging"): lambda: rises("hard_cross_entropy", [0.021, 0.967, 0.005, 0.007], [0.317, 0.338, 0.18, 0.165]),
    ("logit_mse", "appending"): lambda: moved_by_appending("logit_mse"),
    ("standardized_logits", "appending"): lambda: moved_by_appending("standardized_logits"),
    ("tvd", "quadratic"): lambda: not_quadratic("tvd"),
    ("standardized_logits", "quadratic"): lambda: not_quadratic("standardized_logits"),
    ("soft_cross_entropy", "quadratic"): lambda: not_quadratic("soft_cross_entropy"),
    ("hard_cross_entropy", "quadratic"): lambda: not_quadratic("hard_cross_entropy"),
}  # fmt: skip

DISCLAIMED = {(name, law) for name in divergences.names() for law in module(name).DISCLAIMS}


def test_every_disclaimer_names_a_law_and_has_a_counterexample():
    assert {law for _, law in DISCLAIMED} <= LAWS
    assert set(BROKEN) == DISCLAIMED
    assert all(reason for name in divergences.names() for reason in module(name).DISCLAIMS.values())


@pytest.mark.parametrize(("name", "law"), sorted(BROKEN))
def test_a_disclaimed_law_is_really_broken(name, law):
    assert BROKEN[name, law]()


@pytest.mark.parametrize("name", divergences.names())
def test_the_constants_say_what_the_family_needs(name):
    m = module(name)
    assert "dense" in m.SUPPORTS
    assert not m.SUPPORTS - {"dense", "topk", "sampled"}
    assert m.TEMPERATURE_POWER in (0, 1, 2)
    assert m.VANISHES is not ("at_equality" in m.DISCLAIMS)


@pytest.mark.parametrize("name", [n for n in divergences.names() if (n, "appending") not in DISCLAIMED])
def test_ids_of_negligible_probability_change_nothing(name):
    assert not moved_by_appending(name)


# T² · value → factor · mean over ids of (centred student - centred teacher)², where it is not ½.
FACTORS = {
    "hellinger": 1 / 8, "jsd": 0.25 / 2, "skew_kl": 0.9**2 / 2, "skew_reverse_kl": 0.9**2 / 2, "renyi": 0.5 / 2,
    "taid": 0.5**2 / 2, "logit_mse": 1.0, "alpha_beta": 0.5 * 3 ** (1 - 0.9),
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in divergences.names() if (n, "quadratic") not in DISCLAIMED])
def test_every_other_divergence_becomes_squared_error_at_high_temperature(name):
    squared = tempered("logit_mse", 1.0)
    assert 1e5**2 * tempered(name, 1e5) == pytest.approx(FACTORS.get(name, 0.5) * squared, rel=1e-3)
    power = module(name).TEMPERATURE_POWER
    # By convention squared error of logits is never rescaled.
    assert power == (0 if name == "logit_mse" else 2)


@pytest.mark.parametrize("name", [n for n in divergences.names() if getattr(module(n), "TANGENT", False)])
def test_a_partial_said_to_be_the_logits_gradient_sums_to_nothing(name):
    student, teacher = (
        torch.randn(20, 9).double().log_softmax(-1),
        torch.randn(20, 9).double().log_softmax(-1),
    )
    assert module(name).partial(student, teacher).sum(-1).abs().max() < 1e-14
