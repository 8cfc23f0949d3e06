"""The objective against every kind of signal: stored ids, drawn ids, text, and a kind from outside."""

from __future__ import annotations

import pytest
import torch

from builders.losses import BY_AUTOGRAD, normal, outside_divergence
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.sampled import Sampled
from potstill.signals.text import Text
from potstill.signals.topk import TopK

N, V = 37, 101


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_with_all_ids_equals_dense(temperature):
    logits, student = normal(N, V, seed=3), normal(N, V, seed=1).requires_grad_()
    lp = torch.log_softmax(logits, -1)
    top = lp.topk(V)
    lse = {2.0: torch.logsumexp(lp / 2.0, -1)}
    loss = TokenLoss(BY_AUTOGRAD, temperature)
    sparse = logits_loss(student, loss.rowwise(TopK(top.indices, top.values, lse)))
    dense = logits_loss(student, loss.rowwise(Dense(logits)))
    torch.testing.assert_close(sparse.sum, dense.sum, atol=1e-10, rtol=1e-10)
    for ours, theirs in zip(
        torch.autograd.grad(sparse.sum, student), torch.autograd.grad(dense.sum, student), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "truncate"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_gradient_equals_autograd_through_the_bucket(tail, temperature):
    logits, student = normal(N, V, seed=3), normal(N, V, seed=1).requires_grad_()
    lp = torch.log_softmax(logits, -1)
    top = lp.topk(7)
    signal = TopK(top.indices, top.values, {2.0: torch.logsumexp(lp / 2.0, -1)})
    out = logits_loss(student, TokenLoss(BY_AUTOGRAD, temperature, tail=tail).rowwise(signal))
    (got,) = torch.autograd.grad(out.sum, student)

    p_all, q_all = torch.softmax(lp / temperature, -1), torch.softmax(student / temperature, -1)
    p, q = p_all.gather(1, top.indices), q_all.gather(1, top.indices)
    if tail == "renormalise":
        p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    if tail == "bucket":
        p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    expected = (p * (p.log() - q.log())).sum()
    (wanted,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(out.sum, expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)


def test_a_bucket_far_below_the_smallest_number_keeps_its_gradient():
    """The student gives the tail e^-300: in fp32 that mass is 0, its share among the tail's ids is not."""
    student = torch.tensor([[300.0, 0.0, 1.0, 0.0]], requires_grad=True)
    signal = TopK(torch.tensor([[0]]), torch.tensor([[-0.1]]))
    out = logits_loss(student, TokenLoss(BY_AUTOGRAD).rowwise(signal))
    (got,) = torch.autograd.grad(out.sum, student)
    tail = 1 - torch.tensor(-0.1).exp()
    share = torch.softmax(torch.tensor([0.0, 1.0, 0.0]), 0)
    torch.testing.assert_close(got[0, 1:], -tail * share, atol=1e-6, rtol=1e-5)


def test_sampled_targets_report_cross_entropy_minus_entropy_and_are_unbiased():
    generator = torch.Generator().manual_seed(0)
    logits, student = (
        normal(1, 12, seed=3).repeat(4000, 1),
        normal(1, 12, seed=1).repeat(4000, 1).requires_grad_(),
    )
    p = torch.softmax(logits, -1)
    drawn = torch.multinomial(p, 50, replacement=True, generator=generator)
    counts = torch.zeros_like(p).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=p.dtype))
    ids = torch.where(counts > 0, torch.arange(12), -1)
    order = (ids < 0).to(torch.int8).argsort(dim=1, stable=True)
    ids, counts = ids.gather(1, order), counts.gather(1, order)
    entropy = -(p * p.log()).sum(-1)
    out = logits_loss(student, TokenLoss(BY_AUTOGRAD).rowwise(Sampled(ids, counts, entropy)))
    (got,) = torch.autograd.grad(out.sum, student)
    q = torch.softmax(student.detach(), -1)
    expected = q[0] - p[0]
    error = got.std(0) / 4000**0.5
    assert ((got.mean(0) - expected).abs() <= 4 * error + 1e-12).all()
    kl = (p[0] * (p[0].log() - q[0].log())).sum()
    per_row = float(out.sum.detach()) / 4000
    assert abs(per_row - kl) < 0.02


def test_signals_that_a_loss_cannot_take_are_refused_by_name():
    loss = TokenLoss(outside_divergence("only_dense", lambda s, t: (s - t).sum(-1), SUPPORTS={"dense"}))
    with pytest.raises(SignalError, match="only_dense does not support topk"):
        loss.rowwise(TopK(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)))
    with pytest.raises(SignalError, match="gave only text"):
        loss.rowwise(Text())


class Half:
    """A kind of signal that is defined here alone: the first half of the vocabulary, the rest has no mass."""

    kind, estimated = "half", False

    def __init__(self, logits):
        self.logits, self.rows = logits, logits.shape[0]

    def chunks(self, divergence, tail):
        return lambda rows, student_logits: Half(self.logits[rows])

    def beside(self, student_logits, rows, temperature, tail="bucket"):
        missing = torch.full((1, student_logits.shape[1] - self.logits.shape[1]), -torch.inf)
        whole = torch.cat([self.logits[rows], missing.expand(student_logits.shape[0], -1)], -1)
        return Dense(whole).beside(student_logits, slice(None), temperature)


def test_a_kind_of_signal_from_outside_needs_no_change_here():
    half = normal(N, V // 2, seed=3)
    whole = torch.cat([half, torch.full((N, V - V // 2), -torch.inf)], -1)
    student = normal(N, V)
    sums = [
        logits_loss(student, TokenLoss(BY_AUTOGRAD).rowwise(signal)).sum
        for signal in (Half(half), Dense(whole))
    ]
    torch.testing.assert_close(*sums)
