"""Value and closed-form gradient against textbook formulas in float64, to twelve digits of the largest log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from builders.losses import module
from potstill import divergences
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.topk import TopK

Formula = Callable[[Tensor, Tensor], Tensor]  # of probabilities: teacher, student


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a.log() - b.log())).sum(-1)


def mixed(a: float, b: float, p: Tensor, q: Tensor) -> Tensor:
    return a * p + b * q


def jsd(beta: float) -> Formula:
    def value(p: Tensor, q: Tensor) -> Tensor:
        m = mixed(beta, 1 - beta, p, q)
        return beta * kl(p, m) + (1 - beta) * kl(q, m)

    return value


def renyi(r: float) -> Formula:
    return lambda p, q: (p**r * q ** (1 - r)).sum(-1).log() / (r - 1)


def alpha(a: float) -> Formula:
    return lambda p, q: (1 - (p**a * q ** (1 - a)).sum(-1)) / (a * (1 - a))


def alpha_beta(a: float, b: float) -> Formula:
    s = a + b
    return lambda p, q: -(p**a * q**b - a / s * p**s - b / s * q**s).sum(-1) / (a * b)


def taid(t: float) -> Formula:
    def value(p: Tensor, q: Tensor) -> Tensor:
        r = q.detach() ** (1 - t) * p**t
        return kl(r / r.sum(-1, keepdim=True), q)

    return value


TEXTBOOK: list[tuple[str, dict[str, Any], Formula]] = [
    ("forward_kl", {}, kl),
    ("reverse_kl", {}, lambda p, q: kl(q, p)),
    ("soft_cross_entropy", {}, lambda p, q: -(p * q.log()).sum(-1)),
    ("symmetric_kl", {"weight": 0.3}, lambda p, q: 0.7 * kl(p, q) + 0.3 * kl(q, p)),
    ("jsd", {"beta": 0.1}, jsd(0.1)),
    ("jsd", {"beta": 0.9}, jsd(0.9)),
    ("skew_kl", {"alpha": 0.1}, lambda p, q: kl(p, mixed(0.1, 0.9, p, q))),
    ("skew_reverse_kl", {"alpha": 0.1}, lambda p, q: kl(q, mixed(0.9, 0.1, p, q))),
    ("tvd", {}, lambda p, q: (p - q).abs().sum(-1) / 2),
    ("hellinger", {}, lambda p, q: ((p.sqrt() - q.sqrt()) ** 2).sum(-1) / 2),
    ("renyi", {"r": 0.5}, renyi(0.5)),
    ("renyi", {"r": 2.0}, renyi(2.0)),
    ("alpha_divergence", {"alpha": 0.3}, alpha(0.3)),
    ("alpha_beta", {"alpha": 0.2, "beta": 0.7}, alpha_beta(0.2, 0.7)),
    ("alpha_beta", {"alpha": 0.0, "beta": 0.5}, lambda p, q: (q**0.5 * (q / p).log() * 0.5 - q**0.5 + p**0.5).sum(-1) * 4),
    ("alpha_beta", {"alpha": 0.5, "beta": 0.0}, lambda p, q: (p**0.5 * (p / q).log() * 0.5 - p**0.5 + q**0.5).sum(-1) * 4),
    ("taid", {"t": 0.4}, taid(0.4)),
]  # fmt: skip
BUCKETED = [row for row in TEXTBOOK if "topk" in module(row[0]).SUPPORTS]
WRITTEN = {name for name, _, _ in TEXTBOOK}


def named(rows: list[tuple[str, dict[str, Any], Formula]]) -> list[str]:
    return [f"{name}{list(options.values()) or ''}" for name, options, _ in rows]


def pair(n: int = 40, k: int = 11, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (scale * torch.randn(n, k, dtype=torch.float64, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def limit(*logits: Tensor) -> float:
    return 1e-12 * max(1.0, *(float(z.detach().log_softmax(-1).abs().max()) for z in logits))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("name", "options", "formula"), TEXTBOOK, ids=named(TEXTBOOK))
def test_value_and_gradient_equal_the_textbook(name, options, formula, temperature):
    """Over the whole vocabulary: the summed value and each gradient by the logits."""
    student, teacher = pair()
    loss = TokenLoss(Divergence.from_module(module(name), options), temperature)
    out = logits_loss(student, loss.rowwise(Dense(teacher)))
    want = formula((teacher / temperature).softmax(-1), (student / temperature).softmax(-1)).sum()
    allowed = limit(student, teacher)
    assert abs(out.sum - want) <= student.shape[0] * allowed
    got, right = (torch.autograd.grad(x, student)[0] for x in (out.sum, want))
    assert (got - right).abs().max() <= allowed


@pytest.mark.parametrize(("name", "options", "formula"), BUCKETED, ids=named(BUCKETED))
def test_value_and_gradient_equal_the_textbook_on_a_tail_bucket(name, options, formula):
    """Four ids and one bucket for the rest: ids inside the bucket get their share of its gradient."""
    student, teacher = pair()
    top = teacher.log_softmax(-1).topk(4)
    out = logits_loss(
        student,
        TokenLoss(Divergence.from_module(module(name), options)).rowwise(TopK(top.indices, top.values)),
    )
    inside = torch.zeros_like(teacher).scatter_(1, top.indices, 1.0)
    p, q = (
        torch.cat([x.gather(1, top.indices), (x * (1 - inside)).sum(-1, keepdim=True)], -1)
        for x in (teacher.softmax(-1), student.softmax(-1))
    )
    want = formula(p, q).sum()
    # The teacher's bucket is 1 minus the stored mass, which costs digits where it is small.
    allowed = limit(student, teacher) / float(p[:, -1].min())
    assert abs(out.sum - want) <= student.shape[0] * allowed
    got, right = (torch.autograd.grad(x, student)[0] for x in (out.sum, want))
    assert (got - right).abs().max() <= allowed


def test_every_divergence_has_a_textbook_formula_or_is_listed():
    """Every divergence without a formula here is one whose gradient stops or runs through ranks, labels or logits."""
    others = {"adaptive_kl", "entropy_gated_kl", "logit_mse", "standardized_logits", "hard_cross_entropy"}
    assert set(divergences.names()) == WRITTEN | others


# At the end of an option's range the divergence is another one; value and gradient get there without a jump.
LIMITS = [
    ("jsd", {"beta": 1e-7, "normalize": True}, "forward_kl"),
    ("jsd", {"beta": 1 - 1e-7, "normalize": True}, "reverse_kl"),
    ("skew_kl", {"alpha": 1e-9}, "forward_kl"),
    ("skew_reverse_kl", {"alpha": 1e-9}, "reverse_kl"),
    ("symmetric_kl", {"weight": 1e-9}, "forward_kl"),
    ("symmetric_kl", {"weight": 1 - 1e-9}, "reverse_kl"),
    ("alpha_divergence", {"alpha": 1 - 1e-8}, "forward_kl"),
    ("alpha_divergence", {"alpha": 1e-8}, "reverse_kl"),
    ("alpha_beta", {"alpha": 1.0, "beta": 1e-8}, "forward_kl"),
    ("alpha_beta", {"alpha": 1e-8, "beta": 1.0}, "reverse_kl"),
    ("renyi", {"r": 1 - 1e-7}, "forward_kl"),
    ("renyi", {"r": 1 + 1e-7}, "forward_kl"),
    ("taid", {"t": 1 - 1e-9}, "forward_kl"),
]


@pytest.mark.parametrize(("name", "options", "other"), LIMITS, ids=[f"{n}{o}" for n, o, _ in LIMITS])
def test_an_option_reaches_the_end_of_its_range_without_a_jump(name, options, other):
    """The limits have the right factor in value and in gradient (the plain JSD's own is beta or 1 - beta)."""
    student, teacher = pair(scale=1.0)

    def of(which: str, **given: Any) -> tuple[Tensor, Tensor]:
        loss = TokenLoss(Divergence.from_module(module(which), given))
        out = logits_loss(student, loss.rowwise(Dense(teacher))).sum
        return out.detach(), torch.autograd.grad(out, student)[0]

    for ours, theirs in zip(of(name, **options), of(other), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beta", [1e-5, 1 - 1e-5])
def test_the_plain_jsd_near_an_end_is_the_small_share_of_a_kl(beta):
    """Divided by the small one of beta and 1 - beta it is the KL of that end."""
    student, teacher = pair(scale=1.0)
    s, t = student.detach().log_softmax(-1), teacher.log_softmax(-1)
    whole = module("forward_kl" if beta < 0.5 else "reverse_kl").value(s, t)
    torch.testing.assert_close(
        module("jsd").value(s, t, beta=beta) / min(beta, 1 - beta), whole, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("name", divergences.names())
def test_rounding_makes_no_divergence_negative(name):
    """In single precision, near and far from equality, no value is below 0."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(64, 2000, generator=generator)
    for distance in (0.0, 1e-6, 1e-3, 1.0, 30.0):
        student = teacher + distance * torch.randn(64, 2000, generator=generator)
        result = module(name).value(student.log_softmax(-1), teacher.log_softmax(-1))
        assert result.min() >= 0, distance
        assert not result.isnan().any()
    assert math.isfinite(float(result.sum()))
