"""Where log-probabilities are equal, forbidden, far apart or in single precision."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.losses import module, normal
from potstill import divergences
from potstill.errors import RecipeError

INF = math.inf
NAMES = divergences.names()
BOUNDED = ("jsd", "skew_kl", "skew_reverse_kl", "tvd", "hellinger", "alpha_divergence", "alpha_beta")


def lp(*rows: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(rows, dtype=dtype).log_softmax(-1)


def gradient(name: str, student_lp: Tensor, teacher_lp: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The value and its derivative by the logits, by autograd through `value`."""
    logits = student_lp.clone().requires_grad_()
    value = module(name).value(logits.log_softmax(-1), teacher_lp, **options)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def pulled(name: str, student_lp: Tensor, teacher_lp: Tensor, **options: Any) -> Tensor:
    g = module(name).value_and_partial(student_lp, teacher_lp, **options)[1]
    return g - student_lp.exp() * g.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", NAMES)
def test_the_inputs_are_left_as_they_were(name):
    student, teacher = torch.randn(4, 9).log_softmax(-1), torch.randn(4, 9).log_softmax(-1)
    kept = student.clone(), teacher.clone()
    module(name).value(student, teacher)
    if hasattr(module(name), "value_and_partial"):
        module(name).value_and_partial(student, teacher)
    assert torch.equal(student, kept[0])
    assert torch.equal(teacher, kept[1])


@pytest.mark.parametrize("name", [n for n in NAMES if module(n).VANISHES])
def test_a_self_teacher_scores_nothing_in_single_precision(name):
    same = (4 * torch.randn(64, 5_000)).log_softmax(-1)
    assert module(name).value(same, same.clone()).abs().max() <= 1e-7
    if hasattr(module(name), "value_and_partial"):
        assert pulled(name, same, same.clone()).abs().max() <= 1e-6


@pytest.mark.parametrize("name", [n for n in NAMES if module(n).VANISHES])
def test_a_student_near_its_teacher_keeps_value_and_gradient_in_single_precision(name):
    """In half precision, or as a difference of large sums, this value would be noise of either sign."""
    generator = torch.Generator().manual_seed(0)
    teacher = (3 * torch.randn(1, 32_000, generator=generator)).bfloat16()
    student = (teacher.float() + 0.05 * torch.randn(1, 32_000, generator=generator)).bfloat16()
    exact, right = gradient(name, student.double().log_softmax(-1), teacher.double().log_softmax(-1))
    value, results = gradient(name, student.float().log_softmax(-1), teacher.float().log_softmax(-1))
    assert value.item() >= 0
    assert value.item() == pytest.approx(exact.item(), rel=1e-2)
    assert (results.double() - right).norm() / right.norm() < 0.01


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "symmetric_kl", "hellinger", "soft_cross_entropy"]
)
def test_differences_of_nearly_equal_probabilities_do_not_cancel(name):
    """As exp minus exp the partial would be off by 3e-4, and the values by as much as they are."""
    teacher = (3 * torch.randn(1, 2_000)).log_softmax(-1)
    student = teacher + 1e-4 * torch.randn(1, 2_000)
    exact = module(name).value_and_partial(student.double(), teacher.double())[1]
    result = module(name).value_and_partial(student, teacher)[1].double()
    assert (result - exact).norm() / exact.norm() < 1e-5
    value = module(name).value(student, teacher).item()
    assert value == pytest.approx(module(name).value(student.double(), teacher.double()).item(), rel=1e-3)


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(module(n), "value_and_partial") and n != "tvd"])
def test_ids_that_are_exactly_equal_get_the_right_derivative(name):
    """A formula split at equality, by abs or maximum, hands autograd half a derivative there."""
    student = torch.tensor([[0.25, 0.25, 0.30, 0.20]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.25, 0.25, 0.20, 0.30]], dtype=torch.float64).log()
    torch.testing.assert_close(
        gradient(name, student, teacher)[1], pulled(name, student, teacher), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ids_forbidden_on_both_sides_leave_no_nan_in_the_gradient(name, dtype):
    student, teacher = lp([1.0, 0.5, -INF, -1.0], dtype=dtype), lp([2.0, 1.0, -INF, 0.0], dtype=dtype)
    value, results = gradient(name, student, teacher)
    kept = torch.tensor([0, 1, 3])
    torch.testing.assert_close(value, module(name).value(student[:, kept], teacher[:, kept]))
    assert results.isfinite().all()
    assert results[0, 2] == 0
    if hasattr(module(name), "value_and_partial"):
        torch.testing.assert_close(pulled(name, student, teacher), results)


@pytest.mark.parametrize("name", ["forward_kl", "soft_cross_entropy", "symmetric_kl", "logit_mse"])
def test_mass_that_the_student_forbids_is_infinite_not_dropped(name):
    assert module(name).value(lp([1.0, 1.0, -INF]), lp([2.0, 1.0, 0.0])).item() == INF


@pytest.mark.parametrize("name", ["reverse_kl", "symmetric_kl", "logit_mse"])
def test_mass_that_the_teacher_forbids_is_infinite_in_the_other_direction(name):
    assert module(name).value(lp([2.0, 1.0, 0.0]), lp([1.0, 1.0, -INF])).item() == INF


@pytest.mark.parametrize(("options", "student", "teacher"), [
    ({"alpha": 2.0}, [1.0, 1.0, -INF], [2.0, 1.0, 0.0]),
    ({"alpha": 1.0}, [1.0, 1.0, -INF], [2.0, 1.0, 0.0]),
    ({"alpha": -1.0}, [2.0, 1.0, 0.0], [1.0, 1.0, -INF]),
    ({"alpha": 0.0}, [2.0, 1.0, 0.0], [1.0, 1.0, -INF]),
])  # fmt: skip
def test_alpha_outside_the_open_interval_is_infinite_on_lost_mass(options, student, teacher):
    assert module("alpha_divergence").value(lp(student), lp(teacher), **options).item() == INF


def test_renyi_is_infinite_on_lost_mass_from_order_one_on():
    lost = lp([1.0, 1.0, -INF]), lp([2.0, 1.0, 0.0])
    assert [module("renyi").value(*lost, r=r).item() for r in (1.0, 2.0)] == [INF, INF]
    assert math.isfinite(module("renyi").value(*lost, r=0.5).item())


def test_forward_kl_takes_the_students_mass_where_the_teacher_has_none():
    student, teacher = lp([1.0, 1.0, 1.0], dtype=torch.float64), lp([1.0, 1.0, -INF], dtype=torch.float64)
    value, results = gradient("forward_kl", student, teacher)
    assert value.item() == pytest.approx(math.log(3 / 2))
    torch.testing.assert_close(results, torch.tensor([[-1 / 6, -1 / 6, 1 / 3]], dtype=torch.float64))


@pytest.mark.parametrize("name", BOUNDED)
def test_disjoint_supports_stay_finite_where_the_formula_is_bounded(name):
    student, teacher = lp([0.0, -INF, 0.0, -INF]), lp([-INF, 0.0, -INF, 0.0])
    value, results = gradient(name, student, teacher)
    assert value.isfinite().all()
    assert results.isfinite().all()
    assert module(name).value_and_partial(student, teacher)[1].isfinite().all()


def test_bounded_divergences_reach_their_bounds_on_disjoint_supports():
    student, teacher = lp([0.0, -INF], dtype=torch.float64), lp([-INF, 0.0], dtype=torch.float64)
    bounds = {
        ("jsd", 0.1): -0.1 * math.log(0.1) - 0.9 * math.log(0.9), ("jsd", 0.5): math.log(2),
        ("skew_kl", 0.1): math.log(10), ("skew_reverse_kl", 0.1): math.log(10),
        ("tvd", None): 1.0, ("hellinger", None): 1.0,
    }  # fmt: skip
    for (name, number), bound in bounds.items():
        options = {} if number is None else {"beta" if name == "jsd" else "alpha": number}
        assert module(name).value(student, teacher, **options).item() == pytest.approx(bound)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("tvd", "hard_cross_entropy")])
def test_gaps_of_ten_thousand_overflow_nothing(name):
    student, teacher = lp([1e4, 0.0, -1e4, 3.0]), lp([-1e4, 1e4, 0.0, 3.0])
    value, results = gradient(name, student, teacher)
    assert value.isfinite().all()
    assert value.item() > 0
    assert results.isfinite().all()
    if hasattr(module(name), "value_and_partial"):
        torch.testing.assert_close(pulled(name, student, teacher), results, atol=1e-3, rtol=1e-4)


def test_an_overflowing_order_of_renyi_has_a_gradient():
    # p³ / q² is e^400, more than single precision holds; its log is not.
    value, results = gradient("renyi", lp([200.0, 0.0]), lp([0.0, 200.0]), r=3.0)
    assert value.item() == pytest.approx((3 * 200 - 200) / 2)
    assert results.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_student_of_nan_gives_nan(name):
    assert module(name).value(lp([1.0, math.nan, 0.0]), lp([2.0, 1.0, 0.0])).isnan().all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "hard_cross_entropy"])  # which reads a label only
def test_a_teacher_of_nan_gives_nan(name):
    assert module(name).value(lp([1.0, 0.5, 0.0]), lp([2.0, math.nan, 0.0])).isnan().all()


@pytest.mark.parametrize(("name", "options"), [
    ("jsd", {"beta": 1.5}), ("jsd", {"beta": -0.1}), ("jsd", {"beta": math.nan}), ("symmetric_kl", {"weight": 1.0}),
    ("skew_kl", {"alpha": 1.0}), ("skew_reverse_kl", {"alpha": -0.1}), ("renyi", {"r": 0.0}),
    ("alpha_divergence", {"alpha": INF}), ("alpha_beta", {"alpha": -0.1}), ("alpha_beta", {"beta": -0.1}),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.0}), ("adaptive_kl", {"head_mass": 0.0}),
    ("entropy_gated_kl", {"threshold": -1.0}), ("taid", {"t": 0.0}), ("taid", {"t": 1.1}),
    ("standardized_logits", {"base_temperature": 0.0}),
])  # fmt: skip
def test_an_option_outside_its_range_is_refused_with_a_way_out(name, options):
    same = lp([1.0, 0.0])
    with pytest.raises(RecipeError) as caught:
        module(name).value(same, same, **options)
    assert caught.value.path.startswith(f"{name}.")
    assert caught.value.fix


@pytest.mark.parametrize("alpha", [1e-6, 1e-4, 1 - 1e-6])
def test_alpha_divergence_near_a_limit_is_exact_in_single_precision(alpha):
    teacher = torch.log_softmax(normal(4, 50), -1)
    student = torch.log_softmax(normal(4, 50) + 0.02 * normal(4, 50, seed=1), -1)
    value = module("alpha_divergence").value
    exact = value(student, teacher, alpha=alpha)
    rough = value(student.float(), teacher.float(), alpha=alpha).double()
    torch.testing.assert_close(rough, exact, rtol=2e-3, atol=0)
