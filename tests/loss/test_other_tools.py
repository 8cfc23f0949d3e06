"""What other tools return for the same tensors, recorded once with their version, and where the right value is another.

Recorded in float32 from DistiLLM d47e77f, ABKD df81318, torchtune bd2a0fc7c, DistillKit a61c2e7 and TRL 1.13.0, as
means over the six scored positions below.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potstill import DistillationLoss
from potstill.signals.topk import TopK
from potstill.types import Head

ENTROPY = 1.4233637  # of the teacher, mean over the scored positions


def tensors() -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, 5, 11, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])
    return student, teacher, mask, generator


def ours(name: str, *, temperature: float = 1.0, k: int = 0, **options: Any) -> float:
    """Our mean; with k, from the teacher's k likeliest ids and a tail bucket."""
    student, teacher, mask, _ = tensors()
    loss = DistillationLoss(name, temperature=temperature, **options)
    if not k:
        return loss.from_logits(student, teacher, mask).mean.item()
    lp = teacher[mask].log_softmax(-1)
    top = lp.topk(k)
    stored = TopK(top.indices, top.values, {temperature: torch.logsumexp(lp / temperature, -1)})
    return loss.from_logits(student, stored, mask).mean.item()


EQUAL = [
    ("DistiLLM reverse_kl", 2.9111793, "reverse_kl", {}),
    ("DistiLLM js_distance, lam 0.9", 0.1820129, "jsd", {"beta": 0.1}),
    ("DistiLLM tv_distance", 0.7843183, "tvd", {}),
    ("DistiLLM skewed_reverse_kl", 1.4687132, "skew_reverse_kl", {"alpha": 0.1}),
    ("ABKD js_distance, lam 0.1", 0.1910572, "jsd", {"beta": 0.9}),
    ("ABKD AKL", 2.7970252, "adaptive_kl", {}),
    ("ABKD ab_div", 2.8998883, "alpha_beta", {"alpha": 0.2, "beta": 0.7}),
    ("ABKD ab_div", 2.0730410, "alpha_beta", {"alpha": 0.5, "beta": 0.5}),
    ("ABKD ab_div", 2.9111793, "alpha_beta", {"alpha": 0.0, "beta": 1.0}),
    ("ABKD ab_div", 2.5640924, "alpha_beta", {"alpha": 1.0, "beta": 0.0}),
    ("torchtune ReverseKLLoss", 2.9111793, "reverse_kl", {}),
    ("DistillKit dense_kl_div", 2.5640924, "forward_kl", {}),
    ("DistillKit dense_kl_div", 0.8025429, "forward_kl", {"temperature": 2.0}),
    ("DistillKit dense_js_div", 0.4317426, "jsd", {"beta": 0.5}),
    ("DistillKit dense_js_div", 0.1787827, "jsd", {"beta": 0.5, "temperature": 2.0}),
    ("DistillKit dense_tvd", 0.4943961, "tvd", {"temperature": 2.0}),
    ("DistillKit sparse_kl_div, symmetric_uniform", 2.3508015, "forward_kl", {"k": 4}),
    ("DistillKit sparse_js_div, symmetric_uniform", 0.3654002, "jsd", {"beta": 0.5, "k": 4}),
    ("DistillKit sparse_tvd, symmetric_uniform", 0.7466955, "tvd", {"k": 4}),
    ("TRL tail bucket, beta 0", 2.3508016, "forward_kl", {"k": 4}),
    ("TRL tail bucket, beta 0.5", 0.3654002, "jsd", {"beta": 0.5, "k": 4}),
    ("TRL tail bucket, beta 1", 1.7251101, "reverse_kl", {"k": 4}),
]  # fmt: skip


@pytest.mark.parametrize(("tool", "value", "name", "options"), EQUAL)
def test_right_values_of_other_tools_are_reproduced(tool, value, name, options):
    """Equality on the same tensors, in single precision."""
    assert ours(name, **options) == pytest.approx(value, rel=1e-6), tool


def test_a_softcapped_and_scaled_pair_of_heads_equals_trls_chunks():
    """TRL 1.13.0's DistillationTrainer reads each side by its own bias, scale and softcap, then T."""
    recorded = {
        (0.0, 1.0): 1.8530349, (0.0, 2.0): 0.6567436, (0.1, 1.0): 0.1453579, (0.1, 2.0): 0.0562886, (0.5, 1.0): 0.3538139,
        (0.5, 2.0): 0.1445956, (0.9, 1.0): 0.1477175, (0.9, 2.0): 0.0543314, (1.0, 1.0): 2.0166342, (1.0, 2.0): 0.6289358,
    }  # fmt: skip
    *_, generator = tensors()

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hidden, head = normal(6, 4), Head(normal(11, 4), 11, normal(11), scale=0.7, softcap=3.0)
    teacher_hidden, teacher_head = normal(6, 3), Head(normal(11, 3), 11, normal(11), scale=1.3, softcap=5.0)
    for (beta, temperature), value in recorded.items():
        loss = DistillationLoss("jsd", beta=beta, temperature=temperature)
        out = loss(hidden, head, teacher_hidden, teacher_head, torch.ones(6))
        assert out.mean.item() == pytest.approx(value, rel=2e-6)


def test_a_kl_is_the_cross_entropy_of_other_tools_minus_the_entropy():
    """DistiLLM, ABKD and torchtune leave H(p) out of forward, symmetric and skewed forward KL."""
    assert ours("forward_kl") == pytest.approx(3.9874561 - ENTROPY, rel=1e-6)
    assert ours("soft_cross_entropy") == pytest.approx(3.9874561, rel=1e-6)
    assert ours("skew_kl", alpha=0.1) == pytest.approx(2.8651202 - ENTROPY, rel=1e-6)
    assert ours("symmetric_kl", weight=0.9) == pytest.approx(3.0188069 - 0.1 * ENTROPY, rel=1e-6)  # DistiLLM
    assert ours("symmetric_kl", weight=0.5) == pytest.approx(
        3.4493177 - 0.5 * ENTROPY, rel=1e-6
    )  # the others


def test_the_ends_of_the_alpha_beta_family_are_twice_those_of_abkd():
    """ABKD divides by alpha or beta where the limit has its square."""
    assert ours("alpha_beta", alpha=0.0, beta=0.5) == pytest.approx(2 * 4.2783284, rel=1e-6)
    assert ours("alpha_beta", alpha=0.5, beta=0.0) == pytest.approx(2 * 3.8898714, rel=1e-6)


def test_the_bucket_of_stored_ids_is_softened_exactly():
    """DistillKit softens the bucket as if it were one id: 0.9741669 at T = 2 where the bucket's KL is 0.6282034."""
    student, teacher, mask, _ = tensors()
    p, q = ((z[mask] / 2).softmax(-1) for z in (teacher, student))
    ids = teacher[mask].topk(4).indices
    p, q = (torch.cat([x.gather(1, ids), 1 - x.gather(1, ids).sum(-1, keepdim=True)], -1) for x in (p, q))
    right = (p * (p / q).log()).sum(-1).mean().item()
    assert right == pytest.approx(0.6282034, rel=1e-6)
    assert ours("forward_kl", temperature=2.0, k=4) == pytest.approx(right, rel=1e-9)
    assert ours("jsd", beta=0.5, temperature=2.0, k=4) == pytest.approx(0.1251994, rel=1e-6)  # not 0.2056174


def test_stored_ids_never_exceed_the_full_kl():
    """DistillKit's `zero` compares p / S with the student's true masses: 2.9407399, above the full KL."""
    student, teacher, mask, _ = tensors()
    lp = teacher[mask].log_softmax(-1)
    top = lp.topk(4)
    on_ids = student[mask].log_softmax(-1).gather(1, top.indices)
    p = top.values.softmax(-1)
    assert (p * (p.log() - on_ids)).sum(-1).mean().item() == pytest.approx(2.9407399, rel=1e-6)
    assert ours("forward_kl", k=4) < ours("forward_kl") < 2.9407399
