"""A divergence that disclaims a law shows where it breaks; one that does not, keeps it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from builders.losses import module
from potstill import divergences


def value(name: str, student: list[float], teacher: list[float], **options: float) -> float:
    """From two lists of probabilities, which are normalised."""
    s, t = (torch.tensor([x], dtype=torch.float64).log().log_softmax(-1) for x in (student, teacher))
    return module(name).value(s, t, **options).item()


def counterexample(name: str, law: str) -> tuple[list[float], list[float], dict[str, float]]:
    """Probabilities of student and teacher, and options, from the divergence's own file."""
    student, teacher, *options = module(name).COUNTEREXAMPLES[law]
    return student, teacher, *(options or [{}])


def not_at_equality(name: str) -> bool:
    return value(name, [0.6, 0.4], [0.6, 0.4]) > 0.5


def also_elsewhere(name: str) -> bool:
    student, teacher, options = counterexample(name, "only_at_equality")
    return student != teacher and value(name, student, teacher, **options) < 1e-10


def rises(name: str) -> bool:
    """Whether merging the last two outcomes increases it."""
    student, teacher, options = counterexample(name, "merging")
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


BROKEN: dict[str, Callable[[str], bool]] = {
    "at_equality": not_at_equality,
    "only_at_equality": also_elsewhere,
    "merging": rises,
    "appending": moved_by_appending,
    "quadratic": not_quadratic,
}
DISCLAIMED = {
    (name, law): reason
    for name in divergences.names()
    for law, reason in getattr(module(name), "DISCLAIMS", {}).items()
}


def test_every_disclaimer_names_a_law_and_its_reason():
    assert {law for _, law in DISCLAIMED} == set(BROKEN)
    assert all(DISCLAIMED.values())
    given = {(n, law) for n in divergences.names() for law in getattr(module(n), "COUNTEREXAMPLES", {})}
    assert given == {pair for pair in DISCLAIMED if pair[1] in ("only_at_equality", "merging")}


@pytest.mark.parametrize(("name", "law"), sorted(DISCLAIMED))
def test_a_disclaimed_law_is_really_broken(name, law):
    assert BROKEN[law](name)


@pytest.mark.parametrize("name", divergences.names())
def test_the_stated_constants_of_a_divergence_hold(name):
    m = module(name)
    assert "dense" in m.SUPPORTS
    assert not m.SUPPORTS - {"dense", "topk", "sampled", "vector"}
    assert ("vector" in m.SUPPORTS) == (name == "forward_kl")
    assert m.TEMPERATURE_POWER in (0, 1, 2)
    assert m.VANISHES is not ((name, "at_equality") in DISCLAIMED)


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
    assert module(name).value_and_partial(student, teacher)[1].sum(-1).abs().max() < 1e-14
