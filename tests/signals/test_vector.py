"""The teacher's mean of a frozen student head: forward KL and its gradient from it are those of the whole distribution."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from builders.losses import divergence
from potstill.cache.measure import measure
from potstill.cache.vectors import name_of, noise, spread_of, vectors_of
from potstill.errors import SignalError
from potstill.objectives.terms import StudentView
from potstill.objectives.token import TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.vector import KlVector
from potstill.types import Batch, Head

N, V, WIDTH, PADDED = 37, 61, 12, 64
FORWARD = divergence("forward_kl")


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def head(*, bias: bool = False, scale: float = 1.0) -> Head:
    """A head with padded rows behind its vocabulary, which nothing may read."""
    return Head(numbers(PADDED, WIDTH, seed=1), V, numbers(PADDED, seed=2) if bias else None, scale=scale)


def batch() -> Batch:
    """N tokens, all of them scored, some of whose labels are hard and each with a weight."""
    ids = torch.arange(N + 1).unsqueeze(0) % V
    predicts = torch.ones(1, N + 1, dtype=torch.bool)
    predicts[0, -1] = False
    return Batch(
        ids,
        torch.ones_like(ids),
        torch.arange(N + 1).unsqueeze(0),
        predicts,
        ids[0, 1:],
        ("row",),
        torch.arange(N) % 3 != 0,
        weights=numbers(N, seed=6).abs(),
    )


def view(hidden: Tensor, student: Head, dtype: torch.dtype = torch.float64) -> StudentView:
    # Chunks of 16 rows: several, and the last is a shorter one.
    one = batch()
    return StudentView(hidden, student, replace(one, weights=one.weights.to(dtype)), 1, metrics=True)


def by_hand(hidden: Tensor, student: Head, teacher: Tensor, temperature: float, share: float) -> Tensor:
    """The weighted sum in float64, from whole distributions."""
    z = hidden @ student.weight[:V].t()
    z = student.scale * (z if student.bias is None else z + student.bias[:V])
    q, p = torch.log_softmax(z / temperature, -1), torch.log_softmax(teacher / temperature, -1)
    kl = (p.exp() * (p - q)).sum(-1)
    one = batch()
    ce = -torch.log_softmax(z, -1).gather(1, one.targets[:, None])[:, 0] * one.hard
    factor = temperature**2 if share else 1.0
    return (((1 - share) * factor * kl + share * ce) * one.weights).sum()


@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize(("bias", "scale"), [(False, 1.0), (True, 0.5)])
def test_value_and_gradient_are_those_of_the_whole_distribution(bias, scale, temperature, share):
    """In float64 to 1e-11, in float32 to its rounding: with hard labels, weights, a bias, a scale, padded rows."""
    student, teacher = head(bias=bias, scale=scale), numbers(N, V, seed=3, scale=2.0)
    loss = TokenLoss(FORWARD, temperature, share)
    exact = numbers(N, WIDTH, seed=4).requires_grad_()
    wanted = by_hand(exact, student, teacher, temperature, share)
    (slope,) = torch.autograd.grad(wanted, exact)
    for dtype, close in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        narrow = replace(
            student,
            weight=student.weight.to(dtype),
            bias=None if student.bias is None else student.bias.to(dtype),
        )
        signal = vectors_of(Dense(teacher.to(dtype)), narrow, temperature)
        hidden = exact.detach().to(dtype).requires_grad_()
        out = loss(view(hidden, narrow, dtype), signal)
        out.sum.backward()
        torch.testing.assert_close(out.sum.detach().double(), wanted.detach(), rtol=close, atol=close)
        torch.testing.assert_close(hidden.grad.double(), slope, rtol=close, atol=close)
        kl = float(out.metrics["divergence"])
        whole = loss(view(hidden, narrow, dtype), Dense(teacher.to(dtype)))
        assert kl == pytest.approx(float(whole.metrics["divergence"]), rel=1e-5)
        assert float(out.metrics["teacher_entropy"]) == pytest.approx(
            float(whole.metrics["teacher_entropy"]), rel=1e-5
        )
        assert "agreement" not in out.metrics


def test_a_student_that_is_its_teacher_has_no_gradient():
    student, hidden = head(), numbers(N, WIDTH, seed=4).requires_grad_()
    signal = vectors_of(Dense(hidden.detach() @ student.weight[:V].t()), student)
    out = TokenLoss(FORWARD)(view(hidden, student), signal)
    out.sum.backward()
    assert abs(float(out.sum.detach())) < 1e-10
    assert hidden.grad.abs().max() < 1e-12


def test_rows_are_picked_with_their_vectors():
    signal = vectors_of(Dense(numbers(N, V, seed=3)), head(bias=True))
    some = signal.at(torch.tensor([5, 2]))
    assert (some.rows, some.temperature, some.vocabulary) == (2, 1.0, V)
    for name in ("vectors", "shift", "entropy"):
        assert torch.equal(getattr(some, name), getattr(signal, name)[[5, 2]])


def trained(one: Head) -> Head:
    return replace(one, weight=one.weight.clone().requires_grad_())


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (trained(head()), "frozen student head, and this one is trained.*freeze_head"),
        (replace(head(), softcap=30.0), "has a softcap"),
        (replace(head(), vocabulary=V - 1), "cannot serve one of 60"),
        (Head(numbers(PADDED, WIDTH + 1, seed=1), V), "cannot serve one of 61 and 13"),
    ],
)
def test_a_head_that_the_vectors_do_not_fit_is_refused(student, words):
    signal = vectors_of(Dense(numbers(N, V, seed=3)), head())
    with pytest.raises(SignalError, match=words):
        TokenLoss(FORWARD)(view(numbers(N, student.weight.shape[1], seed=4), student), signal)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (TokenLoss(FORWARD, 2.0), r"T=1.0 cannot serve T=2.0.*capture hidden"),
        (TokenLoss(divergence("reverse_kl")), "does not support vector"),
        (TokenLoss(divergence("soft_cross_entropy")), "does not support vector"),
    ],
)
def test_another_divergence_or_temperature_is_refused(loss, words):
    signal = vectors_of(Dense(numbers(N, V, seed=3)), head())
    with pytest.raises(SignalError, match=words):
        loss(view(numbers(N, WIDTH, seed=4), head()), signal)


def test_logits_alone_are_refused():
    signal = vectors_of(Dense(numbers(N, V, seed=3)), head())
    with pytest.raises(SignalError, match="compared with hidden states"):
        TokenLoss(FORWARD).rowwise(signal)


def test_a_head_is_known_by_its_numbers_and_its_form():
    one = head(bias=True)
    others = [
        head(),
        replace(one, scale=2.0),
        replace(one, vocabulary=V - 1),
        replace(one, bias=one.bias + 1e-9),
    ]
    assert len({name_of(each) for each in (one, *others)}) == 5
    padded = replace(one, weight=torch.cat([one.weight, one.weight[:5]]))
    assert name_of(padded) == name_of(one)  # rows beyond the vocabulary are none of it


def test_the_noise_of_vectors_is_that_of_the_smallest_change_of_the_teacher():
    """A change within the span of the head's columns is found again; any other change of as much effect is longer."""
    weight = head().weight[:V]
    change = (weight @ numbers(WIDTH, 5, seed=7)).t()
    found = noise(torch.zeros(5, WIDTH).double(), change @ weight, spread_of(weight))
    torch.testing.assert_close(found, change.square().sum(-1) / 2)
    across = numbers(5, V, seed=8)
    across -= across @ weight @ torch.linalg.pinv(weight)
    more = noise(torch.zeros(5, WIDTH).double(), (change + across) @ weight, spread_of(weight))
    torch.testing.assert_close(more, found)


def test_fewer_bits_cost_more_noise_in_fewer_bytes():
    student, sample = head(), Dense(numbers(N, V, seed=3).float())
    eight, sixteen = measure(
        sample,
        [("kl_vector", {"format": name, "temperature": 1.0, "head": ""}) for name in ("int8", "fp16")],
        student=student,
    )
    assert eight["bytes_per_token"] < sixteen["bytes_per_token"]
    assert 0 < 100 * sixteen["kl_mean"] < eight["kl_mean"] < 1e-5


def test_values_that_were_rounded_count_as_estimates():
    """They may bring a KL below 0, which stops no training."""
    assert KlVector.estimated
