"""The loss in its modes and surroundings: evaluation, a kept graph, autocast, a recomputed region."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from builders.losses import normal
from potstill import DistillationLoss
from potstill.errors import SignalError
from potstill.types import Head

N, H, V = 37, 8, 51


def eval_and_store(student_bias, teacher_bias, labels, **options) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(1, 3, 4, generator=generator), torch.randn(8, 4, generator=generator)
    heads = [Head(weight, 8, torch.tensor(b)) for b in (student_bias, teacher_bias)]
    return [
        DistillationLoss(mode=mode, **options)(hidden, heads[0], hidden, heads[1], labels=labels, metrics=True).sum
        for mode in ("eval", "store")
    ]  # fmt: skip


def test_a_term_without_a_share_does_not_reach_the_evaluation():
    free, forbids = [0.0] * 8, [0.0] * 5 + [-math.inf] + [0.0] * 2
    labels = torch.tensor([[-100, 1, 2]])
    torch.testing.assert_close(*eval_and_store(forbids, free, labels, ce_weight=1.0))
    torch.testing.assert_close(*eval_and_store(forbids, forbids, torch.tensor([[-100, 5, 2]])))


@pytest.mark.parametrize("mode", ["eval", "store"])
def test_a_label_outside_the_vocabulary_is_refused(mode):
    hidden, weight = torch.randn(1, 3, 4), torch.randn(8, 4)
    loss = DistillationLoss(mode=mode, ce_weight=0.5)
    with pytest.raises(SignalError, match="id 9, the student's vocabulary has 8"):
        loss(hidden, weight, hidden, weight, labels=torch.tensor([[1, 2, 9]]))


@pytest.mark.parametrize("name", ["jsd", "renyi"])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_mode_eval_has_the_value_and_the_metrics_of_mode_store_and_no_gradient(name, ce_weight):
    student = torch.nn.Linear(16, 301, bias=False)
    hidden = torch.randn(2, 9, 16, requires_grad=True)
    teacher_hidden, teacher = torch.randn(2, 9, 16), torch.randn(301, 16)
    labels = torch.randint(301, (2, 9))
    stored, seen = (
        DistillationLoss(name, ce_weight=ce_weight, mode=mode, chunk_bytes=1)(
            hidden, student, teacher_hidden, teacher, labels=labels, metrics=True
        )
        for mode in ("store", "eval")
    )
    torch.testing.assert_close(seen.sum, stored.sum, rtol=1e-6, atol=1e-6)
    assert not seen.sum.requires_grad
    assert seen.count == stored.count
    assert seen.metrics.keys() == stored.metrics.keys()
    for metric, value in stored.metrics.items():
        torch.testing.assert_close(seen.metrics[metric], value, rtol=1e-6, atol=1e-6)


def test_recomputing_inside_autocast_gives_the_stored_gradient():
    lora = (
        normal(2, 8, seed=4).float().requires_grad_(),
        normal(20, 2, seed=5).float().requires_grad_(),
        0.5,
    )
    hidden = normal(2, 4, 8).float()
    gradients = []
    for mode in ("store", "recompute"):
        student = hidden.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            head = Head(normal(20, 8, seed=1).float(), 20, lora=lora)
            loss = DistillationLoss("forward_kl", mode=mode)
            out = loss(student, head, hidden.flip(0), normal(20, 8, seed=2).float(), torch.ones(2, 4).bool())
            out.mean.backward()
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("mode", ["store", "eval"])
@pytest.mark.parametrize("wide", ["student", "teacher"])
def test_one_side_may_be_in_fp64(mode, wide):
    parts = [normal(*shape, seed=seed) for seed, shape in enumerate([(2, 4, 8), (20, 8), (2, 4, 8), (20, 8)])]
    mask = torch.ones(2, 4).bool()
    exact = DistillationLoss("forward_kl", mode=mode)(*parts, mask).mean
    narrow = slice(2, 4) if wide == "student" else slice(0, 2)
    parts[narrow] = [part.float() for part in parts[narrow]]
    assert float(DistillationLoss("forward_kl", mode=mode)(*parts, mask).mean) == pytest.approx(
        float(exact), 1e-5
    )


@pytest.mark.parametrize("path", ["hidden", "logits"])
def test_autocast_around_the_loss_changes_no_bit(path):
    """Inside a bf16 region value and gradient are bit for bit those outside."""
    weight, teacher_weight = normal(V, H, seed=2).float(), normal(V, H, seed=4).float()
    loss, results = DistillationLoss("jsd", temperature=2.0), []
    for on in (False, True):
        hidden = normal(N, H, seed=1).float().requires_grad_()
        z, t = hidden @ weight.t(), normal(N, H, seed=3).float() @ teacher_weight.t()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            if path == "hidden":
                out = loss(hidden, weight, normal(N, H, seed=3).float(), teacher_weight, torch.ones(N))
            else:
                out = loss.from_logits(z, t, torch.ones(N))
        out.sum.backward()
        assert out.sum.dtype == torch.float32
        results.append((out.sum.detach(), hidden.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("mode", ["store", "recompute"])
def test_a_loss_inside_a_checkpointed_region_keeps_its_gradient(mode):
    """Backbone and loss in one region that is computed twice: the gradient of computing once."""
    below, head, teacher = (
        nn.Linear(H, H).double(),
        normal(V, H, seed=2).requires_grad_(),
        normal(N, H, seed=3),
    )
    loss = DistillationLoss("reverse_kl", mode=mode)

    def region(x: Tensor) -> Tensor:
        return loss(below(x).tanh(), head, teacher, normal(V, H, seed=4), torch.ones(N)).sum

    results, x = [], normal(N, H, seed=1)
    for again in (False, True):
        total = checkpoint(region, x, use_reentrant=False) if again else region(x)
        results.append(torch.autograd.grad(total, [below.weight, head]))
    for once, twice in zip(*results, strict=True):
        torch.testing.assert_close(twice, once, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("path", ["logits", "hidden"])
def test_a_second_backward_pass_is_refused_where_gradients_are_stored(path):
    """A kept graph must not hand out a gradient that shrank by the factor once more."""
    student, teacher = normal(3, 5).requires_grad_(), normal(3, 5, seed=1)
    loss, eye = DistillationLoss(), torch.eye(5).double()
    if path == "logits":
        out = loss.from_logits(student, teacher, torch.ones(3))
    else:
        out = loss(student, eye, teacher, eye, torch.ones(3))
    torch.autograd.grad(out.sum / 4, student, retain_graph=True)
    with pytest.raises(RuntimeError, match="backpropagated twice"):
        torch.autograd.grad(out.sum / 4, student)
