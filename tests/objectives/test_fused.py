"""The fused path equals the dense formula, whatever the head, the chunk or the dtype."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from builders.losses import BY_AUTOGRAD, Living, normal
from potstill.objectives.fused import chunk_rows, linear_loss, logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.types import Head

N, H, V, PAD = 37, 16, 101, 11


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
    loss = TokenLoss(BY_AUTOGRAD, temperature, ce_weight)
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
        rowwise = TokenLoss(BY_AUTOGRAD).rowwise(Dense(teacher))
        out = linear_loss(hidden, Head(weight, V), rowwise, chunk_bytes=2 * rows * V * 8)
        assert chunk_rows(V, torch.float64, 2 * rows * V * 8) == rows
        results.append((out.sum.detach(), *torch.autograd.grad(out.sum, hidden)))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0], atol=1e-12, rtol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-12, rtol=1e-12)


def test_recomputing_gives_the_same_and_may_be_backpropagated_twice():
    results = []
    for mode in ("store", "recompute"):
        hidden, weight = normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2).requires_grad_()
        rowwise = TokenLoss(BY_AUTOGRAD).rowwise(Dense(normal(N, V, seed=3)))
        with Living() as living:
            out = linear_loss(hidden, Head(weight, V), rowwise, chunk_bytes=2 * 16 * V * 8, mode=mode)
            kept = living.now
        assert (kept >= hidden.nbytes + weight.nbytes) == (mode == "store")
        if mode == "recompute":
            assert kept < 100  # the sum and the count
            out.sum.backward(retain_graph=True)
            hidden.grad = weight.grad = None
        out.sum.backward()
        results.append((out.sum.detach(), hidden.grad, weight.grad))
    for stored, again in zip(*results, strict=True):
        torch.testing.assert_close(stored, again, atol=1e-12, rtol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_costs_no_memory_for_it():
    hidden = normal(N, H, seed=1).requires_grad_()
    weight = normal(V, H, seed=2)
    rowwise = TokenLoss(BY_AUTOGRAD).rowwise(Dense(normal(N, V, seed=3)))
    with Living() as living:
        out = linear_loss(hidden, Head(weight, V), rowwise)
        kept = living.now
    assert hidden.nbytes <= kept < hidden.nbytes + 100
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
    out = linear_loss(
        hidden, Head(normal(V, H), V), TokenLoss(BY_AUTOGRAD).rowwise(Dense(normal(N, V, seed=3)))
    )
    out.sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backpropagated twice"):
        out.sum.backward()


def test_no_scored_position_gives_zero_with_a_graph():
    hidden, weight = normal(0, H).requires_grad_(), normal(V, H).requires_grad_()
    out = linear_loss(hidden, Head(weight, V), TokenLoss(BY_AUTOGRAD).rowwise(Dense(normal(0, V))))
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
        hidden,
        Head(None, V, module=layer),
        TokenLoss(BY_AUTOGRAD).rowwise(teacher),
        chunk_bytes=2 * 16 * V * 8,
    )
    out.sum.backward()
    got = (out.sum.detach(), hidden.grad.clone(), layer.weight.grad.clone(), layer.bias.grad.clone())
    hidden.grad = layer.weight.grad = layer.bias.grad = None
    known = linear_loss(hidden, Head(layer.weight, V, layer.bias), TokenLoss(BY_AUTOGRAD).rowwise(teacher))
    known.sum.backward()
    for ours, theirs in zip(
        got, (known.sum.detach(), hidden.grad, layer.weight.grad, layer.bias.grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-11)


def test_logits_that_exist_give_the_same_as_the_head():
    hidden, weight = normal(N, H, seed=1).requires_grad_(), normal(V, H, seed=2)
    rowwise = TokenLoss(BY_AUTOGRAD).rowwise(Dense(normal(N, V, seed=3)))
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
    linear_loss(hidden, Head(embedding, V), TokenLoss(BY_AUTOGRAD).rowwise(teacher)).sum.backward()
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
        out = linear_loss(h, Head(w, vocabulary), TokenLoss(BY_AUTOGRAD).rowwise(signal))
        return torch.autograd.grad(out.sum, [h, w])

    exact = run(torch.float64)
    for ours, right in zip(run(torch.bfloat16), exact, strict=True):
        assert (ours.double() - right).norm() / right.norm() < 3e-3


def test_cross_entropy_leaves_the_students_own_samples_alone():
    """With a self-teacher and a hard-label share, only the tokens that others wrote add cross-entropy."""
    student = normal(4, V, seed=1).requires_grad_()
    hard = torch.tensor([False, False, False, False])
    rowwise = TokenLoss(BY_AUTOGRAD, ce_weight=0.5).rowwise(Dense(student.detach()), torch.arange(4), hard)
    out = logits_loss(student, rowwise)
    assert abs(float(out.sum.detach())) < 1e-12
    assert torch.autograd.grad(out.sum, student)[0].abs().max() < 1e-12


def test_a_gpu_has_larger_chunks_of_whole_tiles():
    gpu = torch.device("cuda")
    for vocabulary in (32768, 128256, 151936):
        rows = chunk_rows(vocabulary, torch.float32, device=gpu)
        assert rows % 128 == 0
        assert rows > 4 * chunk_rows(vocabulary, torch.float32)
    assert chunk_rows(V, torch.float32, 2 * 37 * V * 4, gpu) == 37  # fewer than a tile
