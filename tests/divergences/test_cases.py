"""Frequent mistakes in distillation losses, each with its right value: teacher logits [2, 1, 0], student [1, 1, 1]."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch
from torch import Tensor

from builders.losses import normal
from potstill import divergences

TEACHER, STUDENT = [2.0, 1.0, 0.0], [1.0, 1.0, 1.0]


def lp(logits: list[float] | Tensor, temperature: float = 1.0) -> Tensor:
    return (torch.as_tensor(logits, dtype=torch.float64).reshape(1, -1) / temperature).log_softmax(-1)


def value(name: str, temperature: float = 1.0, **options: float) -> float:
    module = importlib.import_module(f"potstill.divergences.{name}")
    return module.value(lp(STUDENT, temperature), lp(TEACHER, temperature), **options).item()


def gradient(name: str, temperature: float = 1.0) -> list[float]:
    """By the student's logits, pulled back from the closed form."""
    student, teacher = lp(STUDENT, temperature), lp(TEACHER, temperature)
    g = importlib.import_module(f"potstill.divergences.{name}").value_and_partial(student, teacher)[1]
    return ((g - student.exp() * g.sum()) / temperature).squeeze(0).tolist()


def near(expected: object, tolerance: float = 1e-6) -> object:
    return pytest.approx(expected, abs=tolerance)


def test_direction_is_what_the_name_says_in_value_and_in_gradient():
    assert value("forward_kl") == near(0.266217)
    assert value("reverse_kl") == near(0.308994)
    assert gradient("forward_kl") == near([-0.331908, 0.088605, 0.243303])
    assert gradient("reverse_kl") == near([-1 / 3, 0, 1 / 3])


def test_soft_cross_entropy_is_not_reported_as_a_kl():
    entropy = 0.832396
    assert value("soft_cross_entropy") == near(1.098612)
    assert value("soft_cross_entropy") - value("forward_kl") == near(entropy)
    assert divergences.forward_kl.value(lp(TEACHER), lp(TEACHER)).item() == 0
    assert divergences.soft_cross_entropy.value(lp(TEACHER), lp(TEACHER)).item() == near(entropy)
    assert gradient("soft_cross_entropy") == near(gradient("forward_kl"))
    assert divergences.forward_kl.VANISHES
    assert not divergences.soft_cross_entropy.VANISHES


def test_the_skewed_kl_has_the_teachers_tenth_in_its_second_argument():
    assert value("skew_kl", alpha=0.1) == near(0.216488)


@pytest.mark.parametrize(("beta", "expected"), [(0.1, 0.023992), (0.5, 0.068712), (0.9, 0.026873)])
def test_jsd_weights_the_teacher_by_beta_in_the_mixture(beta, expected):
    assert value("jsd", beta=beta) == near(expected)


def test_jsd_with_a_swapped_mixture_has_another_value():
    p, q = lp(TEACHER).exp(), lp(STUDENT).exp()
    m = 0.1 * p + 0.9 * q
    swapped = (0.9 * (p * (p / m).log()) + 0.1 * (q * (q / m).log())).sum().item()
    assert swapped == near(0.195100)
    assert value("jsd", beta=0.9) != near(swapped, 0.1)


def test_jsd_at_its_ends_is_a_kl():
    for normalize in (False, True):
        assert value("jsd", beta=0.0, normalize=normalize) == near(0.266217)
        assert value("jsd", beta=1.0, normalize=normalize) == near(0.308994)
    assert value("jsd", beta=1e-4) / 1e-4 == near(0.2662, 1e-4)
    assert value("jsd", beta=1e-7, normalize=True) == near(0.266217)
    assert value("jsd", beta=1 - 1e-7, normalize=True) == near(0.308994)


@pytest.mark.parametrize(
    ("temperature", "raw", "scaled"), [(2.0, 0.078421, 0.313684), (4.0, 0.020513, 0.328203)]
)
def test_temperature_squared_is_one_factor_and_not_inside_the_value(temperature, raw, scaled):
    result = value("forward_kl", temperature)
    assert result == near(raw)
    assert result * temperature**divergences.forward_kl.TEMPERATURE_POWER == near(scaled)


def test_the_gradient_at_temperature_two_carries_one_power_from_the_chain_rule():
    assert [4 * g for g in gradient("forward_kl", 2.0)] == near([-0.346294, 0.052275, 0.294019])


def test_hard_cross_entropy_is_a_one_hot_teacher():
    one_hot = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    hard = divergences.hard_cross_entropy.value(lp(STUDENT), one_hot)
    assert hard.item() == near(1.098612)
    assert 0.5 * hard.item() + 0.5 * value("forward_kl") == near(0.682415)
    torch.testing.assert_close(hard, divergences.soft_cross_entropy.value(lp(STUDENT), one_hot))
    torch.testing.assert_close(
        divergences.hard_cross_entropy.value_and_partial(lp(STUDENT), one_hot)[1],
        divergences.soft_cross_entropy.value_and_partial(lp(STUDENT), one_hot)[1],
    )


def test_softening_keeps_a_distribution():
    assert lp([3.0, 2.0, 1.0], 4.0).exp().squeeze(0).tolist() == near([0.419, 0.327, 0.254], 1e-3)
    assert lp(TEACHER, 2.0).exp()[0, 0].item() == near(0.506480)


def bucket(full: Tensor, k: int) -> Tensor:
    return torch.cat([full[:, :k], full[:, k:].logsumexp(-1, keepdim=True)], -1)


def test_each_way_of_cutting_the_teacher_has_its_own_value():
    teacher = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]], dtype=torch.float64).log()
    student = torch.full((1, 5), 0.2, dtype=torch.float64).log()
    kl = divergences.forward_kl.value
    assert kl(student, teacher).item() == near(0.373854)
    assert kl(bucket(student, 2), bucket(teacher, 2)).item() == near(0.360062)
    inside = [x[:, :2] - x[:, :2].logsumexp(-1, keepdim=True) for x in (student, teacher)]
    assert kl(*inside).item() == near(0.031584)
    # The true mass of two ids and nothing else: the bucket's share of the student is a constant too much.
    nothing = torch.full((1, 1), -math.inf, dtype=torch.float64)
    truncated = kl(bucket(student, 2), torch.cat([teacher[:, :2], nothing], -1)).item() + (0.8 - 1)
    assert truncated == near(0.579785)
    empty = torch.full((1, 1), -math.inf, dtype=torch.float64)
    whole = kl(torch.cat([student, empty], -1), torch.cat([teacher, empty], -1))
    assert whole.item() == near(0.373854)


def test_forbidden_ids_on_both_sides_count_for_nothing():
    inf = math.inf
    assert divergences.forward_kl.value(lp([1, 1, -inf]), lp([2, 1, -inf])).item() == near(0.110944)
    assert divergences.forward_kl.value(lp([1, 1, -inf]), lp(TEACHER)).item() == inf


def test_no_log_is_taken_of_an_underflowed_mixture():
    teacher, student = (torch.tensor([z]) for z in ([0.0, 0.0, -200.0], [0.0, 1.0, -210.0]))
    student.requires_grad_()
    for name, expected in (("jsd", 0.0285353), ("skew_kl", None), ("skew_reverse_kl", None)):
        module = importlib.import_module(f"potstill.divergences.{name}")
        result = module.value(student.log_softmax(-1), teacher.log_softmax(-1))
        assert expected is None or result.item() == near(expected)
        assert torch.autograd.grad(result.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "soft_cross_entropy"])
def test_ids_drawn_from_the_teacher_give_its_gradient_on_average(name):
    """All draws of two ids, weighted by their chance; ids not drawn share a bucket the teacher leaves empty."""
    module = importlib.import_module(f"potstill.divergences.{name}")
    assert "sampled" in module.SUPPORTS
    p = lp(TEACHER).exp().squeeze(0)
    logits = torch.tensor([[0.3, -0.2, 0.7]], dtype=torch.float64, requires_grad=True)
    full = logits.log_softmax(-1)
    expected = torch.zeros_like(logits)
    for draw in itertools.product(range(3), repeat=2):
        ids = sorted(set(draw))
        rest = [i for i in range(3) if i not in ids]
        share = torch.tensor([[draw.count(i) / 2 for i in ids] + [0.0, 0.0]], dtype=torch.float64)
        unused = torch.full((1, 1), -math.inf, dtype=torch.float64)
        student = torch.cat([full[:, ids], unused, full[:, rest].logsumexp(-1, keepdim=True)], -1)
        result = module.value(student, share.log())
        plain = -(share[:, : len(ids)] * full[:, ids]).sum()
        entropy = -torch.xlogy(share, share).sum() if name == "forward_kl" else 0.0
        torch.testing.assert_close(result.sum(), plain - entropy)
        chance = math.prod(p[i].item() for i in draw)
        expected += chance * torch.autograd.grad(result.sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(expected, full.detach().exp() - p)


def test_only_losses_linear_in_the_teacher_take_drawn_ids():
    able = {n for n in divergences.names() if "sampled" in getattr(divergences, n).SUPPORTS}
    assert able == {"forward_kl", "soft_cross_entropy"}


def test_adaptive_kl_keeps_the_bucket_out_of_the_head_where_little_is_stored():
    p, q = torch.tensor([[0.25, 0.15, 0.6]]).double(), torch.tensor([[0.1, 0.4, 0.5]]).double()
    value, partial = divergences.adaptive_kl.value_and_partial(q.log(), p.log(), True, head_mass=0.5)
    forward, reverse = (p * (p / q).log()).sum(), (q * (q / p).log()).sum()
    a, b = 0.15 + 0.25, 0.1  # the head is what is stored, the tail is the bucket
    torch.testing.assert_close(value[0], (a * forward + b * reverse) / (a + b))
    torch.testing.assert_close(partial, (a * (q - p) + b * q * (q / p).log()) / (a + b))


def test_monte_carlo_estimators_as_losses_have_these_gradients():
    """Sampled log-ratios are often taken for losses: k1 gives no gradient, k2 reverse KL's, k3 forward KL's."""
    student, teacher = (2 * normal(1, 5, seed=1)).requires_grad_(), lp(2 * normal(1, 5, seed=2))
    q = student.log_softmax(-1)
    log_r = teacher - q
    estimators = {"k1": -log_r, "k2": 0.5 * log_r**2, "k3": log_r.exp() - 1 - log_r}
    weights = q.detach().exp()
    results = {
        k: torch.autograd.grad((weights * v).sum(), student, retain_graph=True)[0]
        for k, v in estimators.items()
    }
    right = {}
    for name in ("forward_kl", "reverse_kl"):
        (right[name],) = torch.autograd.grad(
            getattr(divergences, name).value(student.log_softmax(-1), teacher).sum(), student
        )
    assert results["k1"].abs().max() < 1e-12
    torch.testing.assert_close(results["k2"], right["reverse_kl"])
    torch.testing.assert_close(results["k3"], right["forward_kl"])
