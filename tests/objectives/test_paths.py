"""Every divergence gives one value and one gradient, whichever way it is computed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders.losses import module, normal
from potstill import divergences
from potstill.errors import NotFinite
from potstill.objectives.fused import linear_loss, logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal
from potstill.signals.topk import TopK
from potstill.types import Head

N, H, V, K = 19, 6, 13, 4  # chunks of 16 rows and of 3, an odd vocabulary
STUDENT_ROWS, TEACHER_ROWS = V + 3, V + 6
CHUNK = 2 * 16 * V * 8


SUPPORTED = [(name, support) for name in divergences.names() for support in sorted(module(name).SUPPORTS)]
IDS = [f"{name}-{support}" for name, support in SUPPORTED]


def signal_of(support: str, teacher: Tensor, temperature: float, hidden: Hidden) -> Signal:
    """The signal that a teacher with these logits would give; drawn ids come with random counts."""
    lp = teacher.log_softmax(-1)
    if support == "topk":
        top = lp.topk(K)
        return TopK(top.indices, top.values, {temperature: torch.logsumexp(lp / temperature, -1)})
    if support == "sampled":
        ids = torch.rand(teacher.shape, generator=torch.Generator().manual_seed(9)).argsort(-1)[:, :K].clone()
        counts = torch.randint(1, 9, ids.shape, generator=torch.Generator().manual_seed(9))
        ids[::2, -1], counts[::2, -1] = -1, 0
        share = counts.double() / counts.sum(-1, keepdim=True)
        # The drawn ids' own entropy: what is reported is then the KL from them.
        entropy = -torch.special.xlogy(share, share).sum(-1)
        return Sampled(ids, counts, entropy, temperature)
    return hidden


def plain(name: str, logits: Tensor, teacher: Tensor, temperature: float, signal: Signal) -> Tensor:
    """The same loss [N] written with whole logits and autograd."""
    student, target = (z.div(temperature).log_softmax(-1) for z in (logits, teacher))
    options: dict[str, Any] = {}
    if isinstance(signal, TopK):
        taken = torch.zeros_like(student, dtype=torch.bool).scatter_(1, signal.ids, True)
        student, target = (
            torch.cat([x.gather(1, signal.ids), x.masked_fill(taken, -math.inf).logsumexp(-1, True)], -1)
            for x in (student, target)
        )
        options = {"tail": True} if name == "adaptive_kl" else {}
    if isinstance(signal, Sampled):
        share = signal.counts.double() / signal.counts.sum(-1, keepdim=True)
        cross = -(share * student.gather(1, signal.ids.clamp(min=0))).sum(-1)
        return cross + torch.xlogy(share, share).sum(-1) * (name == "forward_kl")
    return module(name).value(student, target, **options)


def heads(bias: bool, scale: float, softcap: float | None, trained: bool) -> tuple[Head, Head, list[Tensor]]:
    """Student and teacher heads of the form, each with its own numbers and its own padding; what is trained."""
    weight, student_bias = normal(STUDENT_ROWS, H, seed=2), normal(STUDENT_ROWS, seed=3) if bias else None
    leaves = [t.requires_grad_() for t in (weight, student_bias) if t is not None] if trained else []
    student = Head(weight, V, student_bias, scale, softcap)
    other = normal(TEACHER_ROWS, seed=5) if bias else None
    teacher = Head(normal(TEACHER_ROWS, 3, seed=4), V, other, 2 * scale, softcap and softcap + 2)
    return student, teacher, leaves


def whole_logits(hidden: Tensor, head: Head) -> Tensor:
    z = hidden @ head.weight.t() + (0 if head.bias is None else head.bias)
    z = z * head.scale
    return (z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap))[:, : head.vocabulary]


@pytest.mark.parametrize(("name", "support"), SUPPORTED, ids=IDS)
def test_the_fused_path_equals_the_dense_one(name, support):
    """Fused equals dense for every form of head, temperature and support, trained head or frozen."""
    loss_of = Divergence.from_module(module(name))
    forms = itertools.product([1.0, 2.5], [False, True], [1.0, 0.7], [None, 3.0], [False, True])
    for temperature, bias, scale, softcap, trained in forms:
        student, teacher, leaves = heads(bias, scale, softcap, trained)
        hidden, teacher_hidden = normal(N, H, seed=1).requires_grad_(), normal(N, 3, seed=6)
        target = whole_logits(teacher_hidden, teacher)
        signal = signal_of(support, target, temperature, Hidden(teacher_hidden, teacher))
        out = linear_loss(hidden, student, TokenLoss(loss_of, temperature).rowwise(signal), chunk_bytes=CHUNK)
        got = torch.autograd.grad(out.sum, [hidden, *leaves])
        want = plain(name, whole_logits(hidden, student), target, temperature, signal).sum()
        torch.testing.assert_close(out.sum, want, atol=1e-10, rtol=1e-10)
        for ours, theirs in zip(got, torch.autograd.grad(want, [hidden, *leaves]), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


# Relative error of value and gradient against float64 on the same numbers; bf16 rounds the gradient it returns.
TOLERANCE = {torch.float32: (2e-6, 2e-5), torch.bfloat16: (2e-6, 4e-3)}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("name", "support"), SUPPORTED, ids=IDS)
def test_single_and_half_precision_weights_agree_with_float64(name, support, dtype):
    """From the same half-precision weights, the fused loss agrees with float64."""
    sizes = {1: (N, H), 2: (STUDENT_ROWS, H), 4: (TEACHER_ROWS, 3), 6: (N, 3)}
    rounded = {seed: normal(*shape, seed=seed).bfloat16() for seed, shape in sizes.items()}
    results = []
    for kind in (torch.float64, dtype):
        hidden, weight = (rounded[seed].to(kind).requires_grad_() for seed in (1, 2))
        against = Hidden(rounded[6].to(kind), Head(rounded[4].to(kind), V))
        target = rounded[6].double() @ rounded[4].double().t()[:, :V]
        signal = signal_of(support, target, 2.0, against)
        rowwise = TokenLoss(Divergence.from_module(module(name)), 2.0).rowwise(signal)
        out = linear_loss(hidden, Head(weight, V), rowwise)
        results.append((out.sum.detach().double(), *torch.autograd.grad(out.sum, [hidden, weight])))
    (right, *gradients), (value, *got) = results
    limit, gradient_limit = TOLERANCE[dtype]
    assert abs(value - right) <= limit * max(1.0, abs(right))
    for ours, theirs in zip(got, gradients, strict=True):
        assert (ours.double() - theirs).norm() <= gradient_limit * theirs.norm()


extreme = st.floats(-1e4, 1e4, width=32) | st.just(-math.inf)


@pytest.mark.parametrize("name", divergences.names())
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_extreme_logits_give_the_dense_loss(name, data):
    """Logits of ten thousand, forbidden ids, no row, one row, an odd vocabulary: fused equals dense, or is refused."""
    n, v = data.draw(st.sampled_from([(0, 5), (1, 3), (1, 7), (2, 5)]))
    row = st.lists(extreme, min_size=v, max_size=v)
    rows = st.lists(row, min_size=n, max_size=n)
    student, teacher = (torch.tensor(data.draw(rows), dtype=torch.float64).reshape(n, v) for _ in range(2))
    student[:, 0], teacher[:, 0] = student[:, 0].clamp(min=-1e4), teacher[:, 0].clamp(min=-1e4)
    student.requires_grad_()
    rowwise = TokenLoss(Divergence.from_module(module(name))).rowwise(Dense(teacher))
    want = module(name).value(student.log_softmax(-1), teacher.log_softmax(-1)).sum()
    if want.isfinite():
        out = logits_loss(student, rowwise)
        torch.testing.assert_close(out.sum, want.to(out.sum.dtype))
        got, right = (torch.autograd.grad(x, student, allow_unused=True)[0] for x in (out.sum, want))
        assert got.isfinite().all()
        torch.testing.assert_close(got, right, atol=1e-8, rtol=1e-10)
    else:
        with pytest.raises(NotFinite, match="gives no mass to id|nan"):
            logits_loss(student, rowwise)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_an_id_forbidden_by_the_heads_bias_changes_nothing(data):
    """A bias of -inf on ids that neither side uses leaves value and gradients as without those ids."""
    v, n = data.draw(st.sampled_from([3, 7, 11])), data.draw(st.sampled_from([0, 1, 2, 17]))
    forbidden = data.draw(st.sets(st.integers(1, v - 1), max_size=v - 1))
    kept = [i for i in range(v) if i not in forbidden]
    bias = normal(v, seed=3)
    bias[sorted(forbidden)] = -math.inf
    weight, teacher = normal(v, H, seed=2), normal(n, v, seed=4)
    teacher[:, sorted(forbidden)] = -math.inf
    results = []
    for rows in (list(range(v)), kept):
        hidden = normal(n, H, seed=1).requires_grad_()
        head = Head(weight[rows], len(rows), bias[rows])
        rowwise = TokenLoss(Divergence.from_module(module("forward_kl"))).rowwise(Dense(teacher[:, rows]))
        out = linear_loss(hidden, head, rowwise)
        results.append((out.sum.detach(), torch.autograd.grad(out.sum, hidden)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_chunk_need_not_divide_the_tokens(rows):
    """The worked position tiled to 37 tokens, cut into logits of 1, 7 and 64 rows."""
    student = torch.ones(37, 3).requires_grad_()
    loss = TokenLoss(Divergence.from_module(module("forward_kl")))
    total, teacher = torch.zeros(()), torch.tensor([2.0, 1.0, 0.0]).expand(37, 3)
    for start in range(0, 37, rows):
        part = slice(start, start + rows)
        total = total + logits_loss(student[part], loss.rowwise(Dense(teacher[part]))).sum
    assert total.item() / 37 == pytest.approx(0.266217, abs=1e-6)
    (gradient,) = torch.autograd.grad(total, student)
    torch.testing.assert_close(
        gradient, torch.tensor([-0.331908, 0.088605, 0.243303]).expand(37, 3), atol=1e-6, rtol=0
    )
