"""Other projects' losses, written out as they are there, against what docs/losses.md says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from potstill import divergences

S = (2 * torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
T = (2 * torch.randn(20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).log_softmax(-1)
Q, P = S.exp(), T.exp()


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def teacher_share(share: float, weight_on_teacher: float) -> Tensor:
    """weight · KL(p ‖ m) + (1 - weight) · KL(q ‖ m) with that share of the teacher in m."""
    m = share * P + (1 - share) * Q
    return weight_on_teacher * kl(P, m) + (1 - weight_on_teacher) * kl(Q, m)


def student_lambda(lam: float) -> Tensor:
    """m = (1-λ) teacher + λ student, λ on KL(student ‖ m)."""
    m = (1 - lam) * P + lam * Q
    return lam * kl(Q, m) + (1 - lam) * kl(P, m)


def ab_div(alpha: float, beta: float) -> Tensor:
    total = alpha + beta
    inner = P**alpha * Q**beta - alpha / total * P**total - beta / total * Q**total
    return -inner.sum(-1) / (alpha * beta)


ROWS = [
    ("gkd", "jsd", "jsd", {"beta": 0.1}, teacher_share(0.1, 0.1)),
    ("gkd", "jsd", "jsd", {"beta": 0.9}, teacher_share(0.9, 0.9)),
    ("trl", "gkd", "jsd", {"beta": 0.1}, teacher_share(0.1, 0.1)),
    ("trl", "gkd", "jsd", {"beta": 0.0}, kl(P, Q)),
    ("trl", "gkd", "jsd", {"beta": 1.0}, kl(Q, P)),
    ("trl", "gkd", "jsd", {"beta": 0.5}, teacher_share(0.5, 0.5)),
    ("trl", "sdft", "jsd", {"beta": 0.3}, teacher_share(0.3, 0.3)),
    ("trl", "sdpo", "jsd", {"beta": 0.3}, teacher_share(0.3, 0.3)),
    ("distillm", "js_distance", "jsd", {"beta": 0.1}, student_lambda(0.9)),
    ("distillm", "js_distance", "jsd", {"beta": 0.8}, student_lambda(0.2)),
    ("distillm", "symmetric_kl", "symmetric_kl", {"weight": 0.9}, 0.1 * kl(P, Q) + 0.9 * kl(Q, P)),
    ("distillm", "skewed_forward_kl", "skew_kl", {"alpha": 0.1}, kl(P, 0.1 * P + 0.9 * Q)),
    ("distillm", "skewed_reverse_kl", "skew_reverse_kl", {"alpha": 0.1}, kl(Q, 0.9 * P + 0.1 * Q)),
    ("abkd", "js_distance", "jsd", {"beta": 0.9}, student_lambda(0.1)),
    ("abkd", "ab_div", "alpha_beta", {"alpha": 0.2, "beta": 0.7}, ab_div(0.2, 0.7)),
    ("distillm-2", "gkd", "jsd", {"beta": 0.9}, teacher_share(0.9, 0.9)),
    ("dskd", "js_divergence", "jsd", {"beta": 0.5}, teacher_share(0.5, 0.5)),
]  # fmt: skip
PAGE = (Path(__file__).parents[2] / "docs/losses.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("ours", "options", "theirs"), [row[2:] for row in ROWS], ids=[f"{p}/{n}{o}" for p, n, _, o, _ in ROWS]
)
def test_our_loss_has_the_value_that_theirs_has_there(ours, options, theirs):
    torch.testing.assert_close(getattr(divergences, ours).value(S, T, **options), theirs)


def test_every_row_of_the_table_is_evaluated_or_has_no_equal():
    listed = re.findall(r"^\| `([^`]+)` \| `(\w+)` \| `?(\w+)`? \|", PAGE.split("| project |")[1], re.M)
    evaluated = {row[:3] for row in ROWS}
    assert {row for row in listed if row[2] != "none"} == evaluated


def nearest_beta(theirs: Tensor) -> float:
    """How far the closest of our betas stays away from that loss, in nats."""
    betas = [i / 50 for i in range(51)]
    return min((divergences.jsd.value(S, T, beta=b) - theirs).abs().max().item() for b in betas)


def test_a_swapped_mixture_equals_no_beta():
    swapped = teacher_share(share=0.9, weight_on_teacher=0.1)
    assert nearest_beta(swapped) > 0.1


def test_an_interpolation_of_logs_equals_no_beta():
    logs = 0.1 * S + 0.9 * T
    theirs = 0.1 * (P * (T - logs)).sum(-1) + 0.9 * (Q * (S - logs)).sum(-1)
    assert nearest_beta(theirs) > 0.1
