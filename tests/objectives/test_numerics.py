"""Half-precision logits, equal scores, forbidden ids and drawn or stored targets at the edges of a number."""

from __future__ import annotations

import math

import pytest
import torch

from builders.losses import token_loss
from potstill import DistillationLoss, divergences
from potstill.errors import NotFinite, SignalError
from potstill.objectives.fused import logits_loss
from potstill.signals.dense import Dense
from potstill.signals.sampled import Sampled
from potstill.signals.topk import TopK

INF = math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scores", [[1.0] * 4, [60_000.0] * 4, [0.0, 60_000.0, 0.0, -60_000.0]])
@pytest.mark.parametrize("name", divergences.names())
def test_half_precision_scores_give_the_loss_and_gradient_of_single_precision(name, scores, dtype):
    """Four equal scores, and scores near the end of fp16, on either side: finite, and the gradient only rounded."""
    even = torch.tensor([[0.5, 0.25, 0.0, -0.25]], dtype=dtype)
    given = torch.tensor([scores], dtype=dtype)
    for student, teacher in ((even, given), (given, even), (given, given)):
        z = student.clone().requires_grad_()
        out = logits_loss(z, token_loss(name).rowwise(Dense(teacher)))
        (gradient,) = torch.autograd.grad(out.sum, z)
        assert out.sum.isfinite()
        assert out.sum.dtype == torch.float32
        wide = student.float().requires_grad_()
        single = logits_loss(wide, token_loss(name).rowwise(Dense(teacher.float())))
        (exact,) = torch.autograd.grad(single.sum, wide)
        assert exact.isfinite().all()
        # What leaves fp16 is the slope of a standardised row that is almost constant: no scale to divide by.
        assert torch.equal(gradient, exact.to(dtype))


@pytest.mark.parametrize("path", ["logits", "stored", "hidden"])
def test_a_small_divergence_survives_half_precision(path):
    """32,000 ids near equality in bf16: about 0.00125 nats, where bf16 logs give -0.006, and a gradient within 1 %."""
    generator = torch.Generator().manual_seed(0)
    teacher = (3 * torch.randn(1, 32_000, generator=generator)).bfloat16()
    student = (teacher.float() + 0.05 * torch.randn(1, 32_000, generator=generator)).bfloat16()
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        z, t = student.to(dtype).requires_grad_(), teacher.to(dtype)
        if path == "logits":
            out = DistillationLoss().from_logits(z, t, torch.ones(1))
        elif path == "stored":
            lp = t.float().log_softmax(-1) if dtype == torch.bfloat16 else t.log_softmax(-1)
            out = DistillationLoss().from_logits(z, TopK(torch.arange(32_000)[None], lp), torch.ones(1))
        else:
            out = DistillationLoss()(
                torch.ones(1, 1, dtype=dtype), z.t(), torch.ones(1, 1, dtype=dtype), t.t(), torch.ones(1)
            )
        results.append((out.sum.item(), torch.autograd.grad(out.sum, z)[0].double()))
    (exact, right), (value, gradient) = results
    assert exact == pytest.approx(0.00124806, rel=1e-4)
    assert value == pytest.approx(exact, rel=1e-3)
    assert (gradient - right).norm() < 0.01 * right.norm()


@pytest.mark.parametrize("name", ["forward_kl", "symmetric_kl", "soft_cross_entropy", "logit_mse"])
def test_mass_on_an_id_that_the_student_forbids_is_refused(name):
    """The true value is infinite, on whole distributions and on stored ids alike: refused, and the id named."""
    teacher, student = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([[1.0, 1.0, -INF, 1.0]])
    top = teacher.log_softmax(-1).topk(3)
    signals = [Dense(teacher)]
    if "topk" in token_loss(name).divergence.supports:
        signals.append(TopK(top.indices, top.values))
    for signal in signals:
        with pytest.raises(NotFinite, match="gives no mass to id 2, the teacher does"):
            logits_loss(student, token_loss(name).rowwise(signal))


@pytest.mark.parametrize(
    "name", [n for n in divergences.names() if token_loss(n).divergence.supports >= {"topk"}]
)
def test_ids_forbidden_on_both_sides_do_not_change_stored_targets(name):
    """Stored and unstored ids at -inf: the value without them, and no gradient on them."""
    teacher = torch.tensor([[2.0, 1.0, 0.5, -INF, 0.0, -INF]], dtype=torch.float64)
    student = torch.tensor([[1.0, 1.5, 0.0, -INF, 0.3, -INF]], dtype=torch.float64).requires_grad_()
    lp, ids = teacher.log_softmax(-1), torch.tensor([[0, 1, 3]])
    out = logits_loss(student, token_loss(name).rowwise(TopK(ids, lp.gather(1, ids))))
    kept = torch.tensor([0, 1, 2, 4])
    small = student.detach()[:, kept].requires_grad_()
    alone = logits_loss(small, token_loss(name).rowwise(TopK(ids[:, :2], lp[:, :2])))
    torch.testing.assert_close(out.sum, alone.sum, atol=1e-12, rtol=1e-12)
    (gradient,), (wanted,) = torch.autograd.grad(out.sum, student), torch.autograd.grad(alone.sum, small)
    torch.testing.assert_close(gradient[:, kept], wanted, atol=1e-12, rtol=1e-12)
    assert gradient[:, [3, 5]].abs().max() == 0


@pytest.mark.parametrize(
    "name", [n for n in divergences.names() if token_loss(n).divergence.supports >= {"topk"}]
)
def test_a_mixture_of_two_tiny_probabilities_is_finite(name):
    """Ids 120 and 200 below the rest on both sides, dense and stored: finite value, finite gradient."""
    teacher = torch.tensor([[0.0, 0.0, -200.0, -120.0]])
    student = torch.tensor([[0.0, 1.0, -210.0, -120.0]], requires_grad=True)
    top = teacher.log_softmax(-1).topk(3)
    for signal in (Dense(teacher), TopK(top.indices, top.values)):
        out = logits_loss(student, token_loss(name).rowwise(signal))
        assert out.sum.isfinite()
        assert torch.autograd.grad(out.sum, student)[0].isfinite().all()
    if name == "jsd":
        three = logits_loss(student[:, :3], token_loss(name).rowwise(Dense(teacher[:, :3]))).sum
        assert three.item() == pytest.approx(0.0285353, abs=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
def test_all_ids_stored_give_the_full_kl_with_every_tail(tail):
    """With every id stored each way of treating the rest gives the full KL."""
    p = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]])
    out = logits_loss(
        torch.zeros(1, 5), token_loss("forward_kl", tail=tail).rowwise(TopK(torch.arange(5)[None], p.log()))
    )
    assert out.sum.item() == pytest.approx(0.373854, abs=1e-6)


@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "soft_cross_entropy"])
def test_truncated_targets_are_refused_except_by_forward_kl(name):
    """Leaving the rest out is defined for forward KL alone, and refused by name elsewhere."""
    stored = TopK(torch.tensor([[0]]), torch.tensor([[-0.5]]))
    with pytest.raises(SignalError, match=f"forward KL only, not for {name}"):
        token_loss(name, tail="truncate").rowwise(stored)


@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_a_temperature_that_a_cache_does_not_hold_is_refused(temperature):
    """Stored ids without the log-sum-exp at that temperature, and drawn ids of another one, are refused."""
    stored = TopK(torch.tensor([[0]]), torch.tensor([[-0.5]]), {3.0: torch.zeros(1)})
    drawn = Sampled(torch.tensor([[0]]), torch.ones(1, 1), torch.zeros(1), temperature=1.0)
    with pytest.raises(SignalError, match=rf"cannot be re-tempered to T={temperature}: they hold T=1.0, 3.0"):
        DistillationLoss(temperature=temperature).from_logits(torch.zeros(1, 4), stored, torch.ones(1))
    with pytest.raises(SignalError, match=rf"drawn at T=1.0 cannot serve T={temperature}"):
        DistillationLoss(temperature=temperature).from_logits(torch.zeros(1, 4), drawn, torch.ones(1))


@pytest.mark.parametrize(
    "name", sorted({n for n in divergences.names() if not token_loss(n).divergence.linear})
)
def test_drawn_ids_are_refused_by_a_loss_that_is_not_linear(name):
    """Drawn ids are refused by every divergence for which they would be biased."""
    with pytest.raises(SignalError, match=f"{name} does not support sampled"):
        token_loss(name).rowwise(Sampled(torch.tensor([[0]]), torch.ones(1, 1)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 0.360062),
        ({"tail": "bucket"}, 0.360062),
        ({"tail": "truncate"}, 0.579785),
        ({"tail": "renormalise"}, 0.031584),
    ],
)
def test_each_way_of_treating_the_tail_has_its_own_value_and_the_bucket_is_the_default(settings, expected):
    lp = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).log()
    stored, student = TopK(torch.tensor([[0, 1]]), lp[:, :2]), torch.zeros(1, 5)
    loss = token_loss(**settings)
    assert logits_loss(student, loss.rowwise(stored)).sum.item() == pytest.approx(expected, abs=1e-6)
    if not settings:  # the drop-in loss has no word for another tail
        out = DistillationLoss().from_logits(student, stored, torch.ones(1))
        assert out.sum.item() == pytest.approx(expected, abs=1e-6)
