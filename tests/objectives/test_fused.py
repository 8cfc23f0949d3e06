"""The fused path equals the dense formula, whatever the head, the chunk or the dtype."""

from __future__ import annotations

import itertools
import types

import pytest
import torch
from torch import Tensor

from potstill.errors import SignalError
from potstill.objectives.fused import chunk_rows, linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.text import Text
from potstill.signals.topk import TopK
from potstill.types import Head

N, H, V, PAD = 37, 16, 101, 11


def plain_forward_kl() -> Divergence:
    module = types.ModuleType("tests.forward_kl")

    def value(student_lp: Tensor, teacher_lp: Tensor) -> Tensor:
        p = teacher_lp.exp()
        zero = torch.zeros_like(p)
        d = torch.where(p > 0, student_lp - teacher_lp, zero)
        return torch.where(p > 0, p * (torch.expm1(d) - d), student_lp.exp()).sum(-1)

    module.value = value  # type: ignore[attr-defined]
    module.SUPPORTS = frozenset({"dense", "topk", "sampled"})  # type: ignore[attr-defined]
    module.TEMPERATURE_POWER = 2  # type: ignore[attr-defined]
    module.VANISHES = True  # type: ignore[attr-defined]
    return Divergence.from_module(module)


FORWARD = plain_forward_kl()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("temperature", "ce_weight", "softcap", "scale", "bias", "lora"),
    list(itertools.product([1.0, 2.0], [0.0, 0.5], [None, 3.0], [1.0, 0.7], [False, True], [False, True])),
)
def test_fused_equals_dense_for_every_form_of_head(temperature, ce_weight, softcap, scale, bias, lora):
    hidden = normal(N, H, seed=1).requires_grad_()
    weight = normal(V + PAD, H, seed=2).requires_grad_()
    b = normal(V + PAD, seed=3).requires_grad_() if bias else None
    a = normal(4, H, seed=4).requires_grad_() if lora else None
    up = normal(V + PAD, 4, seed=5).requires_grad_() if lora else None
    teacher_hidden, teacher_weight = normal(N, 8, seed=6), normal(V + 3, 8, seed=7)
    targets = torch.arange(N) % V
    weights = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    head = Head(weight, V, b, scale, softcap, (a, up, 0.5) if lora else None)
    loss = TokenLoss(FORWARD, temperature, ce_weight)
    signal = Hidden(teacher_hidden, Head(teacher_weight, V))
    out = linear_loss(
        hidden, head, loss.rowwise(signal, targets, weights=weights), chunk_bytes=2 * 16 * V * 8
    )
    leaves = [t for t in (hidden, weight, b, a, up) if t is not None]
    got = torch.autograd.grad(out.sum * 3, leaves)

    z = hidden @ weight.t()
    if lora:
        z = z + 0.5 * (hidden @ a.t()) @ up.t()
    if bias:
        z = z + b
    z = z * scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    z, t = z[:, :V], (teacher_hidden @ teacher_weight.t())[:, :V]
    student_lp, teacher_lp = torch.log_softmax(z / temperature, -1), torch.log_softmax(t / temperature, -1)
    kl = (teacher_lp.exp() * (teacher_lp - student_lp)).sum(-1) * (temperature**2 if ce_weight else 1)
    ce = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    expected = (((1 - ce_weight) * kl + ce_weight * ce) * weights).sum()
    wanted = torch.autograd.grad(expected * 3, leaves)
    torch.testing.assert_close(out.sum, expected, atol=1e-10, rtol=1e-12)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_chunk_size_does_not_change_value_or_gradient():
    weight, teacher = normal(V, H, seed=2), normal(N, V, seed=3)
    results = []
    for rows in (16, 17, 36, 37, 64):
        hidden = normal(N, H, seed=1).requires_grad_()
        rowwise = TokenLoss(FORWARD).rowwise(Dense(teacher))
        out = linear_loss(hidden, Head(weight, V), rowwise, chunk_bytes=2 * rows * V * 8)
        assert chunk_rows(V, torch.float64, 2 * rows * V * 8) == rows
        results.append((out.sum.detach(), *torch.autograd.grad(out.sum, hidden)))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-12, rtol=1e-12)


def test_recomputing_gives_the_same_and_may_be_backpropagated_twice():
    found = []
    for mode in ("store", "recompute"):
        hidden, weight = normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_()
        rowwise = TokenLoss(FORWARD).rowwise(Dense(normal(N, V, seed=3)))
        out = linear_loss(hidden, Head(weight, V), rowwise, chunk_bytes=2 * 16 * V * 8, mode=mode)
        if mode == "recompute":
            assert out.sum.grad_fn.gradients is None
            out.sum.backward(retain_graph=True)
            hidden.grad = weight.grad = None
        out.sum.backward()
        found.append((out.sum.detach(), hidden.grad, weight.grad))
    for stored, again in zip(*found, strict=True):
        torch.testing.assert_close(stored, again, atol=1e-12, rtol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_costs_no_memory_for_it():
    hidden = normal(N, H, seed=1).requires_grad_()
    weight = normal(V, H, seed=2)
    out = linear_loss(hidden, Head(weight, V), TokenLoss(FORWARD).rowwise(Dense(normal(N, V, seed=3))))
    node = out.sum.grad_fn
    assert node.gradients[0] is not None
    assert node.gradients[1] is None
    out.sum.backward()
    assert weight.grad is None


def test_no_gradient_is_computed_under_no_grad():
    hidden, weight = normal(N, H).requires_grad_(), normal(V, H).requires_grad_()
    seen = []

    class First:
        def require_rows(self, n):
            assert n == N

        def __call__(self, logits, rows, gradient):
            seen.append(gradient)
            return logits[:, 0].clone(), {}

    with torch.no_grad():
        out = linear_loss(hidden, Head(weight, V), First())
    assert seen == [False]
    assert not out.sum.requires_grad


def test_backward_twice_is_refused():
    hidden = normal(N, H).requires_grad_()
    out = linear_loss(hidden, Head(normal(V, H), V), TokenLoss(FORWARD).rowwise(Dense(normal(N, V, seed=3))))
    out.sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backpropagated twice"):
        out.sum.backward()


def test_no_scored_position_gives_zero_with_a_graph():
    hidden, weight = normal(0, H).requires_grad_(), normal(V, H).requires_grad_()
    out = linear_loss(hidden, Head(weight, V), TokenLoss(FORWARD).rowwise(Dense(normal(0, V))))
    out.sum.backward()
    assert out.sum.item() == 0.0
    assert int(out.count) == 0
    assert torch.count_nonzero(weight.grad) == 0


def test_a_head_of_unknown_form_takes_its_own_forward_and_gives_the_same():
    class Odd(torch.nn.Linear):
        pass

    torch.manual_seed(0)
    layer = Odd(H, V, bias=True).double()
    hidden = normal(N, H, seed=1).requires_grad_()
    teacher = Dense(normal(N, V, seed=3))
    out = linear_loss(
        hidden, Head(None, V, module=layer), TokenLoss(FORWARD).rowwise(teacher), chunk_bytes=2 * 16 * V * 8
    )
    out.sum.backward()
    got = (out.sum.detach(), hidden.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone())
    hidden.grad = layer.weight.grad = layer.bias.grad = None
    known = linear_loss(hidden, Head(layer.weight, V, layer.bias), TokenLoss(FORWARD).rowwise(teacher))
    known.sum.backward()
    for ours, theirs in zip(
        got, (known.sum.detach(), hidden.grad, layer.weight.grad, layer.bias.grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


def test_logits_that_exist_give_the_same_as_the_head():
    hidden, weight = normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2)
    rowwise = TokenLoss(FORWARD).rowwise(Dense(normal(N, V, seed=3)))
    fused = linear_loss(hidden, Head(weight, V), rowwise)
    (wanted,) = torch.autograd.grad(fused.sum, hidden)
    given = logits_loss(hidden @ weight.t(), rowwise, chunk_bytes=2 * 16 * V * 8)
    (got,) = torch.autograd.grad(given.sum, hidden)
    torch.testing.assert_close(given.sum, fused.sum, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(got, wanted, atol=1e-11, rtol=1e-11)


def test_a_tied_embedding_gets_both_gradients():
    embedding = normal(V, H, seed=2).requires_grad_()
    ids = torch.arange(N) % V
    teacher = Dense(normal(N, V, seed=3))
    hidden = embedding[ids] * 2
    linear_loss(hidden, Head(embedding, V), TokenLoss(FORWARD).rowwise(teacher)).sum.backward()
    got = embedding.grad.clone()
    embedding.grad = None
    z, t = (embedding[ids] * 2) @ embedding.t(), teacher.logits
    p = torch.softmax(t, -1)
    (p * (torch.log_softmax(t, -1) - torch.log_softmax(z, -1))).sum().backward()
    torch.testing.assert_close(got, embedding.grad, atol=1e-10, rtol=1e-10)


def test_bf16_weights_keep_the_gradient_exact_when_the_student_is_near_the_teacher():
    """bf16 logits lose 8 % of the gradient there: a small difference of large numbers."""
    n, width, vocabulary = 64, 256, 4096
    teacher_weight = (normal(vocabulary, width, seed=1) * 0.13).bfloat16()
    teacher_hidden = normal(n, width, seed=2).bfloat16()
    weight = (teacher_weight.double() + 0.004 * normal(vocabulary, width, seed=3)).bfloat16()

    def run(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        h, w = teacher_hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
        signal = Hidden(teacher_hidden.to(dtype), Head(teacher_weight.to(dtype), vocabulary))
        out = linear_loss(h, Head(w, vocabulary), TokenLoss(FORWARD).rowwise(signal))
        return torch.autograd.grad(out.sum, [h, w])

    exact = run(torch.float64)
    for ours, right in zip(run(torch.bfloat16), exact, strict=True):
        assert (ours.double() - right).norm() / right.norm() < 3e-3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_with_all_ids_equals_dense(temperature):
    logits, student = normal(N, V, seed=3), normal(N, V, seed=1).requires_grad_()
    lp = torch.log_softmax(logits, -1)
    top = lp.topk(V)
    lse = {2.0: torch.logsumexp(lp / 2.0, -1)}
    loss = TokenLoss(FORWARD, temperature)
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
    out = logits_loss(student, TokenLoss(FORWARD, temperature, tail=tail).rowwise(signal))
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
    out = logits_loss(student, TokenLoss(FORWARD).rowwise(signal))
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
    out = logits_loss(student, TokenLoss(FORWARD).rowwise(Sampled(ids, counts, entropy)))
    (got,) = torch.autograd.grad(out.sum, student)
    q = torch.softmax(student.detach(), -1)
    expected = q[0] - p[0]
    error = got.std(0) / 4000**0.5
    assert ((got.mean(0) - expected).abs() <= 4 * error + 1e-12).all()
    kl = (p[0] * (p[0].log() - q[0].log())).sum()
    per_row = float(out.sum.detach()) / 4000
    assert abs(per_row - kl) < 0.02


def test_signals_that_a_loss_cannot_take_are_refused_by_name():
    module = types.ModuleType("tests.only_dense")
    module.value = lambda s, t: (s - t).sum(-1)  # type: ignore[attr-defined]
    module.SUPPORTS = frozenset({"dense"})  # type: ignore[attr-defined]
    loss = TokenLoss(Divergence.from_module(module))
    with pytest.raises(SignalError, match="only_dense does not support topk"):
        loss.rowwise(TopK(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)))
    with pytest.raises(SignalError, match="gave only text"):
        loss.rowwise(Text())


def test_retempering_a_cache_that_lacks_that_temperature_is_refused():
    signal = TopK(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1), {2.0: torch.zeros(1)})
    with pytest.raises(SignalError, match=r"T=3.0: they hold T=1.0, 2.0"):
        logits_loss(torch.zeros(1, 4), TokenLoss(FORWARD, 3.0).rowwise(signal))
    drawn = Sampled(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), torch.zeros(1), temperature=1.0)
    with pytest.raises(SignalError, match=r"drawn at T=1.0 cannot serve T=2.0"):
        logits_loss(torch.zeros(1, 4), TokenLoss(FORWARD, 2.0).rowwise(drawn))


def test_cross_entropy_leaves_the_students_own_samples_alone():
    """With a self-teacher and a hard-label share, only the tokens that others wrote add cross-entropy."""
    student = normal(4, V, seed=1).requires_grad_()
    hard = torch.tensor([False, False, False, False])
    rowwise = TokenLoss(FORWARD, ce_weight=0.5).rowwise(Dense(student.detach()), torch.arange(4), hard)
    out = logits_loss(student, rowwise)
    assert abs(float(out.sum.detach())) < 1e-12
    assert torch.autograd.grad(out.sum, student)[0].abs().max() < 1e-12


class Half:
    """A kind of signal that is defined here alone: the first half of the vocabulary, the rest has no mass."""

    kind, estimated = "half", False

    def __init__(self, logits):
        self.logits, self.rows = logits, logits.shape[0]

    def prepared(self, divergence, tail):
        return self

    def chunk(self, rows, student_logits):
        return Half(self.logits[rows])

    def beside(self, student_logits, rows, temperature, tail="bucket"):
        missing = torch.full((1, student_logits.shape[1] - self.logits.shape[1]), -torch.inf)
        whole = torch.cat([self.logits[rows], missing.expand(student_logits.shape[0], -1)], -1)
        return Dense(whole).beside(student_logits, slice(None), temperature)


def test_a_kind_of_signal_from_outside_needs_no_change_here():
    half = normal(N, V // 2, seed=3)
    whole = torch.cat([half, torch.full((N, V - V // 2), -torch.inf)], -1)
    student = normal(N, V)
    sums = [
        logits_loss(student, TokenLoss(FORWARD).rowwise(signal)).sum for signal in (Half(half), Dense(whole))
    ]
    torch.testing.assert_close(*sums)
