"""Other projects' losses, written out as they are there, against what `translate` says of them."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from potstill import divergences
from potstill.divergences import ALIASES, translate
from potstill.errors import RecipeError

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
    ("gkd", "jsd", {"beta": 0.1}, teacher_share(0.1, 0.1)),
    ("gkd", "jsd", {"beta": 0.9}, teacher_share(0.9, 0.9)),
    ("trl", "gkd", {"beta": 0.1}, teacher_share(0.1, 0.1)),
    ("trl", "gkd", {"beta": 0.0}, kl(P, Q)),
    ("trl", "gkd", {"beta": 1.0}, kl(Q, P)),
    ("trl", "gkd", {}, teacher_share(0.5, 0.5)),
    ("trl", "sdft", {"distillation_alpha": 0.3}, teacher_share(0.3, 0.3)),
    ("trl", "sdpo", {"distillation_alpha": 0.3}, teacher_share(0.3, 0.3)),
    ("distillm", "js_distance", {}, student_lambda(0.9)),
    ("distillm", "js_distance", {"lam": 0.2}, student_lambda(0.2)),
    ("distillm", "symmetric_kl", {}, 0.1 * kl(P, Q) + 0.9 * kl(Q, P)),
    ("distillm", "skewed_forward_kl", {}, kl(P, 0.1 * P + 0.9 * Q)),
    ("distillm", "skewed_reverse_kl", {}, kl(Q, 0.9 * P + 0.1 * Q)),
    ("abkd", "js_distance", {}, student_lambda(0.1)),
    ("abkd", "ab_div", {"alpha": 0.2, "beta": 0.7}, ab_div(0.2, 0.7)),
    ("distillm-2", "gkd", {}, teacher_share(0.9, 0.9)),
    ("dskd", "js_divergence", {}, teacher_share(0.5, 0.5)),
]


@pytest.mark.parametrize(
    ("project", "loss", "options", "theirs"), ROWS, ids=[f"{p}/{n}{o}" for p, n, o, _ in ROWS]
)
def test_a_translated_loss_has_the_value_it_has_there(project, loss, options, theirs):
    name, ours = translate(project, loss, **options)
    found = importlib.import_module(f"potstill.divergences.{name}").value(S, T, **ours)
    torch.testing.assert_close(found, theirs)


def test_every_row_of_the_table_is_evaluated_or_refused():
    refused = {key for key, alias in ALIASES.items() if alias.divergence is None}
    assert {(project, loss) for project, loss, _, _ in ROWS} | refused == set(ALIASES)
    assert {alias.divergence for alias in ALIASES.values()} - {None} <= set(divergences.names())


def test_two_repositories_of_one_author_run_opposite_betas():
    assert translate("distillm", "js_distance")[1]["beta"] == pytest.approx(0.1)
    assert translate("abkd", "js_distance")[1]["beta"] == pytest.approx(0.9)


def nearest_beta(theirs: Tensor) -> float:
    """How far the closest of our betas stays away from that loss, in nats."""
    betas = [i / 50 for i in range(51)]
    return min((divergences.jsd.value(S, T, beta=b) - theirs).abs().max().item() for b in betas)


def test_a_swapped_mixture_equals_no_beta_and_is_refused():
    swapped = teacher_share(share=0.9, weight_on_teacher=0.1)
    assert nearest_beta(swapped) > 0.1
    with pytest.raises(RecipeError, match="swapped") as caught:
        translate("trl 2024-10-09 to 2025-03-13", "gkd", beta=0.1)
    assert caught.value.fix


def test_an_interpolation_of_logs_equals_no_beta_and_is_refused():
    logs = 0.1 * S + 0.9 * T
    theirs = 0.1 * (P * (T - logs)).sum(-1) + 0.9 * (Q * (S - logs)).sum(-1)
    assert nearest_beta(theirs) > 0.1
    with pytest.raises(RecipeError, match="without normalising"):
        translate("trl before 2024-10-09", "gkd", beta=0.1)


@pytest.mark.parametrize(("project", "loss", "options", "said"), [
    ("trl", "kgd", {}, "no translation"),
    ("trl", "gkd", {"lam": 0.1}, "has no lam"),
    ("dskd", "js_divergence", {"beta": 0.1}, "has no beta"),
    ("gkd", "jsd", {}, "no default beta"),
])  # fmt: skip
def test_what_cannot_be_translated_is_said(project, loss, options, said):
    with pytest.raises(RecipeError, match=said) as caught:
        translate(project, loss, **options)
    assert caught.value.fix
