"""Each divergence against its formula as a textbook writes it, in value and in gradient by the logits."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import divergences

Formula = Callable[..., Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def jsd(p: Tensor, q: Tensor, beta: float = 0.5, normalize: bool = False) -> Tensor:
    m = beta * p + (1 - beta) * q
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta) if normalize else 1)


def alpha_beta(p: Tensor, q: Tensor, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    total = alpha + beta
    if alpha == 0:
        return (q**beta * (q**beta / p**beta).log() - q**beta + p**beta).sum(-1) / beta**2
    if beta == 0:
        return (p**alpha * (p**alpha / q**alpha).log() - p**alpha + q**alpha).sum(-1) / alpha**2
    inner = p**alpha * q**beta - alpha / total * p**total - beta / total * q**total
    return -inner.sum(-1) / (alpha * beta)


def adaptive_kl(p: Tensor, q: Tensor, head_mass: float = 0.5) -> Tensor:
    rows = []
    for pi, qi in zip(p, q, strict=True):
        head, mass = [], 0.0
        for rank, i in enumerate(pi.argsort(descending=True).tolist()):
            mass += float(pi[i])
            if rank == 0 or mass <= head_mass:
                head.append(i)
        tail = [i for i in range(len(pi)) if i not in head]
        misfit = (pi - qi).abs().detach()
        a, b = misfit[head].sum(), misfit[tail].sum()
        rows.append((a * kl(pi, qi) + b * kl(qi, pi)) / (a + b))
    return torch.stack(rows)


def gated(p: Tensor, q: Tensor, threshold: float = 1.0, keep_reverse: bool = False) -> Tensor:
    uncertain = -(p * p.log()).sum(-1) >= threshold
    assert uncertain.any()
    assert not uncertain.all()
    if keep_reverse:
        return kl(q, p) + uncertain * kl(p, q)
    return torch.where(uncertain, kl(p, q), kl(q, p))


def taid(p: Tensor, q: Tensor, t: float = 0.5) -> Tensor:
    target = q.detach() ** (1 - t) * p**t
    return kl(target / target.sum(-1, keepdim=True), q)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def standardized(p: Tensor, q: Tensor, base_temperature: float = 2.0) -> Tensor:
    tau = base_temperature
    a, b = (
        torch.softmax(centred(x.log()) / x.log().std(-1, keepdim=True, correction=0) / tau, -1)
        for x in (p, q)
    )
    return tau**2 * kl(a, b)


CASES: list[tuple[str, dict[str, Any], Formula]] = [
    ("forward_kl", {}, kl),
    ("reverse_kl", {}, lambda p, q: kl(q, p)),
    ("jsd", {}, jsd),
    ("jsd", {"beta": 0.1, "normalize": True}, jsd),
    ("jsd", {"beta": 0.9}, jsd),
    ("symmetric_kl", {"weight": 0.9}, lambda p, q, weight: (1 - weight) * kl(p, q) + weight * kl(q, p)),
    ("skew_kl", {"alpha": 0.1}, lambda p, q, alpha: kl(p, alpha * p + (1 - alpha) * q)),
    ("skew_reverse_kl", {"alpha": 0.1}, lambda p, q, alpha: kl(q, (1 - alpha) * p + alpha * q)),
    ("tvd", {}, lambda p, q: (p - q).abs().sum(-1) / 2),
    ("hellinger", {}, lambda p, q: 1 - (p * q).sqrt().sum(-1)),
    *[
        ("alpha_divergence", {"alpha": a}, lambda p, q, alpha: (1 - (p**alpha * q ** (1 - alpha)).sum(-1)) / (alpha * (1 - alpha)))
        for a in (-0.5, 0.3, 2.0)
    ],
    *[
        ("alpha_beta", {"alpha": a, "beta": b}, alpha_beta)
        for a, b in ((0.2, 0.7), (0.6, 0.7), (1.0, 1.0), (0.0, 0.5), (0.5, 0.0), (0.0, 1.0))
    ],
    *[("renyi", {"r": r}, lambda p, q, r: (p**r * q ** (1 - r)).sum(-1).log() / (r - 1)) for r in (0.5, 2.0, 3.0)],
    ("adaptive_kl", {}, adaptive_kl),
    ("adaptive_kl", {"head_mass": 0.8}, adaptive_kl),
    ("entropy_gated_kl", {}, gated),
    ("entropy_gated_kl", {"keep_reverse": True}, gated),
    ("taid", {"t": 0.4}, taid),
    ("logit_mse", {}, lambda p, q: (centred(q.log()) - centred(p.log())).square().mean(-1)),
    ("standardized_logits", {}, standardized),
    ("soft_cross_entropy", {}, lambda p, q: -(p * q.log()).sum(-1)),
    ("hard_cross_entropy", {}, lambda p, q: -q.gather(-1, p.argmax(-1, keepdim=True)).log().squeeze(-1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "formula"), CASES, ids=[f"{n}{list(o.values()) or ''}" for n, o, _ in CASES])  # fmt: skip
def test_value_and_gradient_follow_the_textbook(name, options, formula):
    module = importlib.import_module(f"potstill.divergences.{name}")
    student = (1.5 * torch.randn(60, 9, dtype=torch.float64)).requires_grad_()
    teacher = 1.5 * torch.randn(60, 9, dtype=torch.float64)
    p, q, student_lp = teacher.softmax(-1), student.softmax(-1), student.log_softmax(-1)
    want = formula(p, q, **options)
    teacher_lp = teacher.log_softmax(-1)
    got = module.value(student_lp, teacher_lp, **options)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)

    (want_grad,) = torch.autograd.grad(want.sum(), student, retain_graph=True)
    (got_grad,) = torch.autograd.grad(got.sum(), student, retain_graph=True)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-9, atol=1e-11)
    if hasattr(module, "value_and_partial"):
        g = module.value_and_partial(student_lp, teacher_lp, **options)[1]
        pulled = g - q * g.sum(-1, keepdim=True)
        torch.testing.assert_close(pulled, want_grad, rtol=1e-9, atol=1e-11)


def test_every_divergence_is_held_to_a_formula():
    assert {name for name, _, _ in CASES} == set(divergences.names())


def test_adaptive_kl_never_ranks_a_bucket_among_the_head():
    teacher = torch.tensor([[0.30, 0.25, 0.45]]).double().log()
    student = torch.tensor([[0.30, 0.40, 0.30]]).double().log()
    p, q = teacher.exp(), student.exp()
    # All the misfit lies in the tail once the bucket (the last column) belongs there.
    as_bucket = divergences.adaptive_kl.value(student, teacher, True)
    as_id = divergences.adaptive_kl.value(student, teacher)
    torch.testing.assert_close(as_bucket, kl(q, p))
    torch.testing.assert_close(as_id, 0.5 * kl(p, q) + 0.5 * kl(q, p))


def test_adaptive_kl_does_not_depend_on_the_order_of_equally_likely_ids():
    teacher = torch.tensor([[0.4, 0.4, 0.2]]).double().log()
    student = torch.tensor([[0.7, 0.1, 0.2]]).double().log()
    swapped = torch.tensor([1, 0, 2])
    torch.testing.assert_close(
        divergences.adaptive_kl.value(student, teacher),
        divergences.adaptive_kl.value(student[:, swapped], teacher[:, swapped]),
    )
