"""Stored ids: rows that do not fit, ids that do not exist, and a bucket that is empty or tiny."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from builders.losses import divergence
from potstill import DistillationLoss, divergences
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal
from potstill.signals.topk import TopK


def stored(n: int, v: int = 5) -> TopK:
    lp = torch.randn(n, v).log_softmax(-1)
    return TopK(*reversed(lp.topk(2)))


def longer(kind: str, n: int) -> Signal:
    if kind == "dense":
        return Dense(torch.randn(n, 5))
    if kind == "sampled":
        return Sampled(torch.zeros(n, 1, dtype=torch.long), torch.ones(n, 1), torch.zeros(n))
    return stored(n)


@pytest.mark.parametrize("n", [1, 2, 4, 9])
@pytest.mark.parametrize("kind", ["dense", "topk", "sampled"])
def test_targets_with_another_number_of_rows_are_refused(kind, n):
    """A signal with more or fewer rows than scored positions is refused with both numbers; it never trains."""
    student = torch.randn(3, 5)
    with pytest.raises(SignalError, match=rf"\b{n}\b.*\b3\b|\b3\b.*\b{n}\b"):
        logits_loss(student, TokenLoss(divergence("forward_kl")).rowwise(longer(kind, n)))


def test_one_row_of_targets_is_not_broadcast():
    """With every id stored, a single row used to be broadcast over three positions."""
    signal = TopK(torch.tensor([[0, 1]]), torch.full((1, 2), 0.5).log())
    with pytest.raises(SignalError, match="rows"):
        DistillationLoss().from_logits(torch.zeros(1, 3, 2), signal, torch.ones(1, 3))


@pytest.mark.parametrize(
    ("ids", "lp", "what"),
    [
        ([[5]], [[-0.1]], "id 5"),  # the vocabulary has 5
        ([[4, 4]], [[-0.7, -0.7]], "twice"),
        ([[3, 4]], [[0.2, -0.5]], "0.2"),  # above 0: probabilities, or not normalised
        ([[3, 4]], [[-0.1, -0.1]], "mass"),  # 1.81 in all
    ],
)
def test_targets_that_are_no_log_probabilities_are_refused(ids, lp, what):
    """Ids out of range, ids given twice, log-probabilities above 0 and a mass above 1 are named."""
    signal = TopK(torch.tensor(ids), torch.tensor(lp))
    with pytest.raises(SignalError, match=what):
        DistillationLoss().from_logits(torch.zeros(1, 1, 5), signal, torch.ones(1, 1))


def test_unused_places_up_to_the_vocabularys_size_keep_the_tail():
    """Two stored ids in five places are two stored ids: 0.360062 with the bucket, not 0.1798."""
    lp = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).log()
    signal = TopK(torch.tensor([[0, 1, -1, -1, -1]]), lp)
    out = DistillationLoss().from_logits(torch.zeros(1, 1, 5), signal, torch.ones(1, 1))
    assert out.mean.item() == pytest.approx(0.360062, abs=1e-6)


def test_unused_places_may_stand_before_the_others():
    """-1 before the stored ids is an unused place too."""
    lp = torch.tensor([[0.5, 0.3]]).log()
    back = TopK(torch.tensor([[0, 1, -1]]), torch.cat([lp, torch.zeros(1, 1)], -1))
    front = TopK(torch.tensor([[-1, 0, 1]]), torch.cat([torch.zeros(1, 1), lp], -1))
    z = torch.randn(1, 1, 5)
    wanted = DistillationLoss().from_logits(z, back, torch.ones(1, 1)).sum
    student = z.clone().requires_grad_()
    out = DistillationLoss().from_logits(student, front, torch.ones(1, 1)).sum
    out.backward()
    torch.testing.assert_close(out.detach(), wanted)


@pytest.mark.parametrize("name", [n for n in divergences.names() if "topk" in divergence(n).supports])
def test_an_empty_bucket_gives_the_dense_value(name):
    """Both sides allow only the stored ids, whose mass is 1: the dense value, and not infinity."""
    inf = -math.inf
    student = torch.tensor([[1.0, 1.0, inf, inf]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, inf, inf]])
    lp = teacher.log_softmax(-1)
    loss = TokenLoss(divergence(name))
    out = logits_loss(student, loss.rowwise(TopK(torch.tensor([[0, 1]]), lp[:, :2])))
    dense = logits_loss(student, loss.rowwise(Dense(teacher)))
    assert out.sum.item() == pytest.approx(dense.sum.item(), abs=1e-6)
    assert torch.autograd.grad(out.sum, student)[0].isfinite().all()


@pytest.mark.parametrize(
    "name", [n for n in divergences.names() if divergence(n).vanishes and "topk" in divergence(n).supports]
)
@pytest.mark.parametrize("scale", [20.0, 40.0, 80.0])
def test_a_confident_self_teacher_is_zero_on_stored_ids(name, scale):
    """Nearly all mass on the stored ids: an exact copy still scores at most 1e-6 nats per token."""
    z: Tensor = scale * torch.randn(200, 500, generator=torch.Generator().manual_seed(0))
    top = z.log_softmax(-1).topk(8)
    out = logits_loss(z, TokenLoss(divergence(name)).rowwise(TopK(top.indices, top.values)))
    assert abs(out.mean.item()) <= 1e-6


@pytest.mark.parametrize(("dtype", "k"), [(torch.bfloat16, 64), (torch.float16, 1000)])
def test_half_precision_does_not_excuse_twice_the_mass(dtype, k):
    heavy = torch.full((1, k), math.log(2 / k)).to(dtype)
    with pytest.raises(SignalError, match="mass"):
        TopK(torch.arange(k)[None], heavy).checked()
    whole = torch.full((1, k), math.log(1 / k)).to(dtype)
    TopK(torch.arange(k)[None], whole).checked()


def test_targets_in_float64_give_zero_for_an_exact_copy():
    for seed in range(20):
        z = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
        z[:, 8:] = -math.inf
        lp = z.double().log_softmax(-1)[:, :8]
        mask = torch.ones(1, dtype=torch.bool)
        out = DistillationLoss().from_logits(z, TopK(torch.arange(8)[None], lp), mask)
        assert abs(float(out.sum)) <= 1e-6


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("kind", ["lse", "entropy"])
def test_values_beside_stored_ids_must_have_as_many_rows(rows, kind):
    ids = torch.tensor([[1], [2]])
    values = torch.zeros(rows)
    signal = (
        TopK(ids, torch.full((2, 1), -1.0), {2.0: values})
        if kind == "lse"
        else Sampled(ids, torch.ones(2, 1), values)
    )
    with pytest.raises(SignalError, match=r"2 rows, \(\d,\) values"):
        signal.checked()
