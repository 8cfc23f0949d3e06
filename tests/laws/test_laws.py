"""The laws of every divergence in the folder. A new file joins by existing.

A divergence may disclaim a law, with a reason; `test_disclaimers` then evaluates a counterexample, so a
disclaimer that is not needed fails too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.losses import divergence, module, token_loss
from potstill import divergences
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.topk import TopK

ALL = [
    (name, options)
    for name in divergences.names()
    for options in ({}, *getattr(module(name), "EXAMPLES", ()))
]


def disclaimed(divergence: Any) -> Any:
    """The laws that a divergence's module disclaims; `test_disclaimers` shows how each is broken."""
    return getattr(divergence, "DISCLAIMS", {})


def every(keeps: Callable[[Any], bool]) -> pytest.MarkDecorator:
    """Each divergence whose module `keeps` the law, with each of its examples of options."""
    chosen = [(name, options) for name, options in ALL if keeps(module(name))]
    return pytest.mark.parametrize(
        ("name", "options"), chosen, ids=[f"{n}{list(o.values()) or ''}" for n, o in chosen]
    )


EVERY = every(lambda m: True)


def logits(n: int, k: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lp(z: Tensor) -> Tensor:
    return torch.log_softmax(z, -1)


def value(name: str, options: dict[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
    return module(name).value(lp(student), lp(teacher), **options)


@EVERY
def test_values_are_never_negative(name, options):
    assert (value(name, options, logits(500, 7, 1), logits(500, 7, 2)) >= 0).all()


@EVERY
def test_zero_at_equality_unless_it_says_otherwise(name, options):
    z = logits(50, 7, 1)
    result = value(name, options, z, z.clone())
    if module(name).VANISHES:
        assert result.abs().max() < 1e-12
    else:
        assert result.max() > 1e-3


@every(lambda m: m.VANISHES and "only_at_equality" not in disclaimed(m))
def test_zero_only_at_equality(name, options):
    z = logits(300, 7, 1)
    near = z + 0.01 * logits(300, 7, 2)
    assert (value(name, options, near, z) > 1e-9).all()


def merged(z: Tensor) -> Tensor:
    """The last two outcomes as one."""
    full = lp(z)
    return torch.cat([full[:, :-2], full[:, -2:].logsumexp(-1, keepdim=True)], -1)


@every(lambda m: "merging" not in disclaimed(m))
def test_merging_outcomes_never_increases(name, options):
    student, teacher = logits(20_000, 4, 3), logits(20_000, 4, 4)
    whole = value(name, options, student, teacher)
    joined = module(name).value(merged(student), merged(teacher), **options)
    assert (joined <= whole + 1e-10).all()


def test_the_alpha_beta_divergence_rises_on_merging_only_above_one():
    student, teacher = logits(20_000, 4, 3), logits(20_000, 4, 4)
    for (alpha, beta), expected in (((0.6, 0.7), True), ((1.0, 1.0), True), ((0.2, 0.7), False)):
        whole = module("alpha_beta").value(lp(student), lp(teacher), alpha=alpha, beta=beta)
        joined = module("alpha_beta").value(merged(student), merged(teacher), alpha=alpha, beta=beta)
        assert bool((joined > whole + 1e-10).any()) is expected


@EVERY
def test_the_order_of_ids_does_not_matter(name, options):
    student, teacher = logits(20, 7, 1), logits(20, 7, 2)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(
        value(name, options, student[:, order], teacher[:, order]), value(name, options, student, teacher)
    )


@EVERY
def test_ids_that_both_sides_forbid_change_nothing(name, options):
    student, teacher = logits(20, 7, 1), logits(20, 7, 2)
    never = torch.full((20, 3), -math.inf, dtype=torch.float64)
    wide = value(name, options, torch.cat([student, never], -1), torch.cat([teacher, never], -1))
    torch.testing.assert_close(wide, value(name, options, student, teacher))


@EVERY
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_gradient_by_the_logits_equals_float64_autograd(name, options, temperature):
    student, teacher = logits(40, 9, 1).requires_grad_(), logits(40, 9, 2)
    loss = TokenLoss(divergence(name, **options), temperature)
    (got,) = torch.autograd.grad(logits_loss(student, loss.rowwise(Dense(teacher))).sum, student)
    plain = module(name).value(lp(student / temperature), lp(teacher / temperature), **options).sum()
    (want,) = torch.autograd.grad(plain, student)
    limit = 1e-12 * max(1.0, float(lp(student.detach()).abs().max()))
    assert (got - want).abs().max() <= limit


@every(lambda m: hasattr(m, "value_and_partial"))
def test_the_value_is_the_same_alone_and_with_its_partial(name, options):
    m = module(name)
    s, t = lp(logits(30, 9, 1)), lp(logits(30, 9, 2))
    both = m.value_and_partial(s, t, **options)
    assert torch.equal(both[0], m.value(s, t, **options))


SMOOTH = [
    (n, o)
    for n, o in ALL
    if n not in ("adaptive_kl", "entropy_gated_kl", "taid", "tvd", "hard_cross_entropy")
]


@pytest.mark.parametrize(("name", "options"), SMOOTH, ids=[f"{n}{list(o.values()) or ''}" for n, o in SMOOTH])
def test_the_gradient_equals_finite_differences(name, options):
    teacher = lp(logits(3, 6, 2))
    student = logits(3, 6, 1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: module(name).value(lp(z), teacher, **options), (student,), atol=1e-6
    )


@pytest.mark.parametrize("name", [n for n in divergences.names() if "topk" not in module(n).SUPPORTS])
def test_stored_ids_are_refused_where_a_bucket_would_be_wrong(name):
    with pytest.raises(SignalError, match=f"{name} does not support topk signals, only: dense"):
        token_loss(name).rowwise(TopK(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)))


@every(lambda m: "topk" in m.SUPPORTS)
def test_the_tail_buckets_gradient_equals_autograd(name, options):
    student, teacher = logits(30, 11, 1).requires_grad_(), lp(logits(30, 11, 2))
    top = teacher.topk(4)
    loss = TokenLoss(divergence(name, **options))
    out = logits_loss(student, loss.rowwise(TopK(top.indices, top.values)))
    (got,) = torch.autograd.grad(out.sum, student)
    rest = torch.ones_like(teacher, dtype=torch.bool).scatter_(1, top.indices, False)

    def bucketed(full: Tensor) -> Tensor:
        tail = full.masked_fill(~rest, -math.inf).logsumexp(-1, keepdim=True)
        return torch.cat([full.gather(1, top.indices), tail], -1)

    extra = {"tail": True} if name == "adaptive_kl" else {}
    plain = module(name).value(bucketed(lp(student)), bucketed(teacher), **extra, **options).sum()
    (want,) = torch.autograd.grad(plain, student)
    torch.testing.assert_close(out.sum, plain, atol=1e-8, rtol=1e-9)
    assert (got - want).abs().max() <= 1e-8


@every(lambda m: "topk" in m.SUPPORTS and "merging" not in disclaimed(m))
def test_top_k_with_a_bucket_never_exceeds_dense_where_merging_never_increases(name, options):
    student, teacher = logits(200, 11, 1), lp(logits(200, 11, 2))
    top = teacher.topk(4)
    loss = TokenLoss(divergence(name, **options))
    sparse = logits_loss(student, loss.rowwise(TopK(top.indices, top.values))).sum
    dense = logits_loss(student, loss.rowwise(Dense(teacher))).sum
    assert sparse <= dense + 1e-9


# T^2 * D -> factor * mean over ids of (centred student - centred teacher)^2
QUADRATIC = [
    ("forward_kl", {}, 0.5), ("reverse_kl", {}, 0.5), ("symmetric_kl", {}, 0.5), ("hellinger", {}, 0.125),
    ("renyi", {"r": 2.0}, 1.0), ("renyi", {"r": 0.5}, 0.25), ("jsd", {"beta": 0.3}, 0.3 * 0.7 / 2),
    ("jsd", {"beta": 0.3, "normalize": True}, 0.5), ("skew_kl", {"alpha": 0.2}, 0.8**2 / 2),
    ("skew_reverse_kl", {"alpha": 0.2}, 0.8**2 / 2), ("alpha_divergence", {"alpha": 0.3}, 0.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "factor"), QUADRATIC, ids=[f"{n}{o}" for n, o, _ in QUADRATIC])
def test_at_high_temperature_it_becomes_squared_error_with_the_right_factor(name, options, factor):
    student, teacher = logits(10, 6, 1), logits(10, 6, 2)
    t = 1e4
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    result = t**2 * value(name, options, student / t, teacher / t)
    torch.testing.assert_close(result, factor * difference.square().mean(-1), rtol=1e-3, atol=1e-6)
    assert module(name).TEMPERATURE_POWER == 2


def test_alpha_beta_at_high_temperature_scales_with_the_vocabulary():
    student, teacher = logits(10, 6, 1), logits(10, 6, 2)
    t, alpha, beta = 1e4, 0.2, 0.7
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    result = (
        t**2
        * 6 ** ((alpha + beta) - 1)
        * value("alpha_beta", {"alpha": alpha, "beta": beta}, student / t, teacher / t)
    )
    torch.testing.assert_close(result, 0.5 * difference.square().mean(-1), rtol=1e-3, atol=1e-6)


def test_total_variation_scales_with_t_and_not_with_its_square():
    student, teacher = logits(10, 6, 1), logits(10, 6, 2)
    a, b = (t * value("tvd", {}, student / t, teacher / t) for t in (1e3, 2e3))
    torch.testing.assert_close(a, b, rtol=1e-2, atol=0)
    assert module("tvd").TEMPERATURE_POWER == 1
    assert module("logit_mse").TEMPERATURE_POWER == module("hard_cross_entropy").TEMPERATURE_POWER == 0


def test_normalised_jsd_tends_to_the_two_kls():
    student, teacher = logits(50, 7, 1, 1.0), logits(50, 7, 2, 1.0)
    for beta, name in ((1e-6, "forward_kl"), (1 - 1e-6, "reverse_kl")):
        result = value("jsd", {"beta": beta, "normalize": True}, student, teacher)
        torch.testing.assert_close(result, value(name, {}, student, teacher), rtol=1e-4, atol=1e-6)


def test_the_family_meets_where_the_formulas_say():
    student, teacher = logits(50, 7, 1), logits(50, 7, 2)
    same = [
        (("alpha_beta", {"alpha": 1.0, "beta": 0.0}), ("forward_kl", {}), 1.0),
        (("alpha_beta", {"alpha": 0.0, "beta": 1.0}), ("reverse_kl", {}), 1.0),
        (("alpha_beta", {"alpha": 0.5, "beta": 0.5}), ("hellinger", {}), 4.0),
        (("alpha_divergence", {"alpha": 1.0}), ("forward_kl", {}), 1.0),
        (("alpha_divergence", {"alpha": 0.0}), ("reverse_kl", {}), 1.0),
        (("renyi", {"r": 1.0}), ("forward_kl", {}), 1.0),
        (("taid", {"t": 1.0}), ("forward_kl", {}), 1.0),
        (("skew_kl", {"alpha": 0.0}), ("forward_kl", {}), 1.0),
        (("skew_reverse_kl", {"alpha": 0.0}), ("reverse_kl", {}), 1.0),
        (("jsd", {"beta": 0.0}), ("forward_kl", {}), 1.0),
        (("jsd", {"beta": 1.0}), ("reverse_kl", {}), 1.0),
    ]
    for (one, options), (other, others), factor in same:
        torch.testing.assert_close(
            value(one, options, student, teacher),
            factor * value(other, others, student, teacher),
            rtol=1e-9,
            atol=1e-9,
        )


extreme = st.floats(-1e4, 1e4, width=32) | st.just(-math.inf)


@EVERY
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nothing_breaks_on_extreme_logits(name, options, data):
    n, k = data.draw(st.sampled_from([(0, 5), (1, 2), (1, 7), (3, 5)]))
    rows = st.lists(st.lists(extreme, min_size=k, max_size=k), min_size=n, max_size=n)
    student, teacher = (torch.tensor(data.draw(rows), dtype=torch.float32).reshape(n, k) for _ in range(2))
    student[:, 0], teacher[:, 0] = student[:, 0].clamp(min=-1e4), teacher[:, 0].clamp(min=-1e4)
    s, t = lp(student), lp(teacher)
    result = module(name).value(s, t, **options)
    assert result.shape == (n,)
    assert not result.isnan().any()
    assert (result >= -1e-5).all()
    if hasattr(module(name), "value_and_partial"):
        partial = module(name).value_and_partial(s, t, **options)[1]
        # Where the value is infinite the target is impossible and training stops.
        assert not partial[result.isfinite()].isnan().any()


def test_all_pairs_of_options_are_listed_once():
    assert len(ALL) == len({(n, str(o)) for n, o in ALL})
