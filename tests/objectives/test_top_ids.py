"""A comparison on the teacher's likeliest ids, chosen and renormalised a chunk at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builders.losses import normal, token_loss
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.top import TopIds

N, V = 40, 23
STUDENT, TEACHER = normal(N, V), normal(N, V, seed=1)


def loss_and_gradient(loss: TokenLoss, signal, chunk_bytes: int = 2**20):
    leaf = STUDENT.clone().requires_grad_()
    out = logits_loss(leaf, loss.rowwise(signal), chunk_bytes=chunk_bytes)
    out.sum.backward()
    return replace(out, sum=out.sum.detach()), leaf.grad


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd"])
def test_it_equals_both_softmaxes_over_those_ids_alone(name, temperature):
    out, grad = loss_and_gradient(
        token_loss(name, temperature, top=TopIds(5)), Dense(TEACHER), chunk_bytes=16
    )
    ids = TEACHER.topk(5, -1).indices
    inside = STUDENT.gather(1, ids).requires_grad_()
    wanted = logits_loss(inside, token_loss(name, temperature).rowwise(Dense(TEACHER.gather(1, ids)))).sum
    wanted.backward()
    assert float(out.sum) == pytest.approx(float(wanted.detach()), rel=1e-12)
    torch.testing.assert_close(
        grad, torch.zeros_like(grad).scatter_(1, ids, inside.grad), atol=1e-12, rtol=1e-9
    )


def test_as_many_ids_as_there_are_compare_the_whole_vocabulary():
    some = loss_and_gradient(token_loss("reverse_kl", top=TopIds(V + 9)), Dense(TEACHER))
    whole = loss_and_gradient(token_loss("reverse_kl"), Dense(TEACHER))
    assert float(some[0].sum) == pytest.approx(float(whole[0].sum), rel=1e-12)
    torch.testing.assert_close(some[1], whole[1], atol=1e-12, rtol=1e-9)


def test_ids_that_are_left_out_are_never_compared():
    likeliest = int(TEACHER[0].argmax())
    _, grad = loss_and_gradient(
        token_loss("reverse_kl", top=TopIds(5, left_out=(likeliest, 999))), Dense(TEACHER)
    )
    assert float(grad[:, likeliest].abs().max()) == 0
    assert int((grad[0] != 0).sum()) == 5


def test_ids_that_the_teacher_forbids_are_no_part_of_the_support():
    forbidden = TEACHER.clone()
    forbidden[:, 3:] = -torch.inf
    out, grad = loss_and_gradient(token_loss("reverse_kl", top=TopIds(8)), Dense(forbidden))
    assert out.sum.isfinite()
    assert float(grad[:, 3:].abs().max()) == 0


def test_a_student_that_equals_its_teacher_has_no_loss():
    out, grad = loss_and_gradient(token_loss("reverse_kl", top=TopIds(5)), Dense(STUDENT))
    assert float(out.sum) == pytest.approx(0, abs=1e-12)
    assert float(grad.abs().max()) < 1e-12


def test_a_divergence_of_the_whole_vocabulary_alone_is_refused():
    with pytest.raises(SignalError, match="logit_mse does not support topk"):
        token_loss("logit_mse", top=TopIds(5)).rowwise(Dense(TEACHER))
