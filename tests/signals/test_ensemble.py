"""Several teachers as one: against float64 by hand, and what each average is right for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.divergences import forward_kl, reverse_kl, soft_cross_entropy
from potstill.errors import SignalError
from potstill.objectives.fused import logits_loss
from potstill.objectives.token import Divergence, TokenLoss
from potstill.signals.dense import Dense
from potstill.signals.ensemble import Ensemble
from potstill.signals.pool import averaged
from potstill.signals.sampled import Sampled
from potstill.signals.text import Text
from potstill.signals.top import TopIds
from potstill.signals.topk import TopK

N, V = 3, 5  # three tokens, five ids
FORWARD, REVERSE = Divergence.from_module(forward_kl), Divergence.from_module(reverse_kl)


def logits(seed: int, scale: float = 2.0, rows: int = N, width: int = V) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, width, dtype=torch.float64, generator=generator)


TEACHERS = (logits(1), logits(2), logits(3, scale=6.0))
WEIGHTS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 0.6, 0.4]], dtype=torch.float64)
OWN = (1.0, 1.5, 3.0)  # each teacher's temperature


def together(*signals: Any, combine: str = "probabilities", weights: Tensor = WEIGHTS, **parts: Any) -> Any:
    kinds = {signal.kind for signal in signals} - {"text"}
    settings: dict[str, Any] = {
        "kind": kinds.pop() if len(kinds) == 1 else "topk",
        "estimated": any(signal.estimated for signal in signals),
        "names": tuple("abc"[: len(signals)]),
        "signals": signals,
        "temperatures": (1.0,) * len(signals),
        "combine": combine,
        "weights": weights[:, : len(signals)] / weights[:, : len(signals)].sum(-1, keepdim=True),
    }
    return Ensemble(**settings | parts)


def dense(**how: Any) -> Ensemble:
    return together(*map(Dense, TEACHERS), temperatures=OWN, **how)


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def by_hand(combine: str, temperature: float) -> list[list[float]]:
    """The averages in plain Python: each teacher is tempered first."""
    rows = []
    for row in range(N):
        sides = [softmax(z[row].tolist(), temperature * own) for z, own in zip(TEACHERS, OWN, strict=True)]
        weights = WEIGHTS[row].tolist()
        if combine == "probabilities":
            rows.append([sum(w * p[i] for w, p in zip(weights, sides, strict=True)) for i in range(V)])
        else:
            product = [math.prod(p[i] ** w for w, p in zip(weights, sides, strict=True)) for i in range(V)]
            rows.append([value / sum(product) for value in product])
    return rows


def loss_of(
    signal: Any, student: Tensor, divergence: Divergence, temperature: float = 1.0, **how: Any
) -> Any:
    leaf = student.clone().requires_grad_()
    rows = TokenLoss(divergence, temperature, **how).rowwise(signal)
    loss = logits_loss(leaf, rows)
    (gradient,) = torch.autograd.grad(loss.sum, leaf)
    return replace(loss, sum=loss.sum.detach()), gradient


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("combine", ["probabilities", "log_probabilities"])
def test_a_loss_is_that_of_the_average_worked_out_by_hand(combine, temperature):
    wanted = by_hand(combine, temperature)
    student = logits(9)
    loss, gradient = loss_of(dense(combine=combine), student, FORWARD, temperature)
    total = 0.0
    for row in range(N):
        q = softmax(student[row].tolist(), temperature)
        total += sum(p * math.log(p / q[i]) for i, p in enumerate(wanted[row]))
        for i in range(V):
            assert float(gradient[row, i]) == pytest.approx((q[i] - wanted[row][i]) / temperature, abs=1e-12)
    assert float(loss.sum) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    ("combine", "divergence"), [("probabilities", FORWARD), ("log_probabilities", REVERSE)]
)
def test_each_average_minimises_the_sum_of_the_losses_that_it_is_right_for(combine, divergence):
    best = torch.tensor(by_hand(combine, 1.0), dtype=torch.float64).log()
    other = "probabilities" if combine == "log_probabilities" else "log_probabilities"
    worse = torch.tensor(by_hand(other, 1.0), dtype=torch.float64).log()
    loss, gradient = loss_of(dense(combine="losses"), best, divergence)
    assert gradient.abs().max() < 1e-12
    off, slope = loss_of(dense(combine="losses"), worse, divergence)
    assert slope.abs().max() > 1e-2
    assert float(off.sum) > float(loss.sum) + 1e-2


def test_a_sum_of_losses_is_the_weighted_sum_of_each_teachers_loss_and_gradient():
    student = logits(9)
    loss, gradient = loss_of(dense(combine="losses"), student, REVERSE, 2.0)
    value, slope = 0.0, torch.zeros_like(student)
    for number, z in enumerate(TEACHERS):
        alone = TokenLoss(REVERSE, 2.0).rowwise(Dense(z / OWN[number]), weights=WEIGHTS[:, number])
        leaf = student.clone().requires_grad_()
        one = logits_loss(leaf, alone)
        slope += torch.autograd.grad(one.sum, leaf)[0]
        value += float(one.sum.detach())
    assert float(loss.sum) == pytest.approx(value, abs=1e-12)
    torch.testing.assert_close(gradient, slope, atol=1e-12, rtol=0)


def test_an_average_of_raw_logits_lets_the_sharpest_teacher_win_and_an_average_of_probabilities_does_not():
    """With one teacher's logits three times as large, the first id has 0.99 of the one and as much of the other."""
    soft = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    against = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    even = torch.full((1, 2), 0.5, dtype=torch.float64)

    def first(combine: Any, scale: float) -> float:
        sides = [(scale * soft).log_softmax(-1), against.log_softmax(-1)]
        return float(averaged(sides, even, combine).exp()[0, 0])

    def of_logits(scale: float) -> float:
        return float(((scale * soft + against) / 2).softmax(-1)[0, 0])

    for scale in (1.0, 3.0):
        assert first("log_probabilities", scale) == pytest.approx(of_logits(scale), abs=1e-12)
    assert of_logits(3.0) - of_logits(1.0) > 0.35
    assert of_logits(3.0) > 0.88
    assert first("probabilities", 3.0) - first("probabilities", 1.0) < 0.11
    # Tempered by its own scale first, the sharp teacher says what it said before.
    calibrated = [(3 * soft / 3).log_softmax(-1), against.log_softmax(-1)]
    assert float(averaged(calibrated, even, "log_probabilities").exp()[0, 0]) == pytest.approx(of_logits(1.0))


def top(z: Tensor, k: int, *temperatures: float) -> TopK:
    lp = z.log_softmax(-1)
    values, ids = lp.topk(k)
    return TopK(ids, values, {t: (lp / t).logsumexp(-1) for t in temperatures})


@pytest.mark.parametrize("combine", ["probabilities", "log_probabilities", "losses"])
def test_stored_ids_of_the_whole_vocabulary_are_the_whole_distributions(combine):
    student = logits(9)
    sparse = together(
        top(TEACHERS[0], V, 2.0),
        Dense(TEACHERS[1]),
        top(TEACHERS[2], V, 6.0),
        temperatures=OWN,
        combine=combine,
    )
    for signal in (sparse, sparse.at(torch.tensor([2, 0]))):
        rows = torch.arange(N) if signal is sparse else torch.tensor([2, 0])
        loss, gradient = loss_of(signal, student[rows], FORWARD, 2.0)
        wanted, slope = loss_of(dense(combine=combine).at(rows), student[rows], FORWARD, 2.0)
        torch.testing.assert_close(loss.sum, wanted.sum, atol=1e-9, rtol=0)
        torch.testing.assert_close(gradient, slope, atol=1e-9, rtol=0)


@pytest.mark.parametrize("combine", ["probabilities", "log_probabilities"])
def test_several_teachers_stored_ids_are_compared_on_their_union_and_one_bucket(combine):
    """By hand: teacher k gives an id that it did not store min(its least stored p, r / (m + 1))."""
    stored = [{0: 0.5, 1: 0.3}, {1: 0.6, 2: 0.1}]  # 8 ids
    sides = []
    for number, own in enumerate(stored):
        other = stored[1 - number]
        missing, rest = [i for i in other if i not in own], 1 - sum(own.values())
        guess = min(min(own.values()), rest / (len(missing) + 1))
        side = own | dict.fromkeys(missing, guess)
        sides.append([side[0], side[1], side[2], 1 - sum(side.values())])
    weights = (0.25, 0.75)
    if combine == "probabilities":
        wanted = [sum(w * side[i] for w, side in zip(weights, sides, strict=True)) for i in range(4)]
    else:
        product = [math.prod(s[i] ** w for w, s in zip(weights, sides, strict=True)) for i in range(4)]
        wanted = [value / sum(product) for value in product]
    signals = [
        TopK(torch.tensor([list(own)]), torch.tensor([list(own.values())], dtype=torch.float64).log())
        for own in stored
    ]
    signal = together(*signals, combine=combine, weights=torch.tensor([weights], dtype=torch.float64))
    student = logits(9, rows=1, width=8)
    support = signal.chunks(FORWARD, "bucket")(slice(0, 1), student).beside(student, slice(0, 1), 1.0)
    assert support.ids is not None
    assert support.ids.tolist() == [[0, 1, 2]]
    assert support.teacher_lp.exp()[0].tolist() == pytest.approx(wanted, abs=1e-12)
    assert float(support.student_lp.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_an_id_that_one_teacher_did_not_store_is_vetoed_by_nobody():
    z = [logits(seed, rows=40, width=30) for seed in (1, 2)]
    signal = together(
        *(top(one, 4) for one in z), combine="log_probabilities", weights=torch.full((40, 2), 0.5).double()
    )
    student = logits(9, rows=40, width=30)
    loss, gradient = loss_of(signal, student, REVERSE)
    assert loss.sum.isfinite()
    assert gradient.isfinite().all()
    exact = together(*map(Dense, z), combine="log_probabilities", weights=torch.full((40, 2), 0.5).double())
    assert float(loss.sum) <= float(loss_of(exact, student, REVERSE)[0].sum) * 1.2


def routed(kind: str, combine: str = "probabilities") -> tuple[Ensemble, list[Any]]:
    """Teacher a is asked about positions 0, 2 and 5, b about 1 and 5, c about nothing, d about 3 and 4."""
    asked = torch.zeros(6, 4, dtype=torch.bool)
    for number, places in enumerate([(0, 2, 5), (1, 5), (), (3, 4)]):
        asked[list(places), number] = True
    whole = [logits(seed, rows=6, width=12) for seed in (1, 2, 3, 4)]
    signals: list[Any] = []
    for number, z in enumerate(whole):
        mine = z[asked[:, number]]
        signals.append(Text() if not len(mine) else Dense(mine) if kind == "dense" else top(mine, 3))
    weights = asked.double() / asked.double().sum(-1, keepdim=True)
    signal = together(*signals, combine=combine, weights=weights, asked=asked, names=tuple("abcd"), kind=kind)
    return signal, whole


@pytest.mark.parametrize("combine", ["probabilities", "log_probabilities", "losses"])
@pytest.mark.parametrize("kind", ["dense", "topk"])
def test_a_row_has_its_own_teacher_alone_whatever_stands_beside_it(kind, combine):
    signal, whole = routed(kind, combine)
    student = logits(9, rows=6, width=12)
    _, gradient = loss_of(signal, student, REVERSE)
    for position, number in [(0, 0), (2, 0), (1, 1), (3, 3), (4, 3)]:
        place = torch.tensor([position])
        z = whole[number][place]
        own = Dense(z) if kind == "dense" else top(z, 3)
        loss, slope = loss_of(own, student[place], REVERSE)
        torch.testing.assert_close(gradient[place], slope, atol=1e-12, rtol=0)
        alone, again = loss_of(signal.at(place), student[place], REVERSE)
        torch.testing.assert_close(alone.sum, loss.sum, atol=1e-12, rtol=0)
        torch.testing.assert_close(again, slope, atol=1e-12, rtol=0)
    mask = torch.tensor([True, False, False, True, False, True])
    torch.testing.assert_close(loss_of(signal.at(mask), student[mask], REVERSE)[1], gradient[mask])


@pytest.mark.parametrize("kind", ["dense", "topk"])
def test_routed_signals_are_cut_into_chunks_and_blocks_anywhere(kind):
    signal, _ = routed(kind)
    student = logits(9, rows=6, width=12)
    chunks = signal.chunks(FORWARD, "bucket")
    whole = chunks(slice(0, 6), student).beside(student, slice(0, 6), 1.0)
    wanted = FORWARD.value(whole.student_lp, whole.teacher_lp, tail=whole.tail)
    for start, middle, stop in [(0, 1, 3), (1, 4, 6), (2, 2, 5), (3, 5, 6)]:
        chunk = chunks(slice(start, stop), student[start:stop])
        for part in (slice(0, middle - start), slice(middle - start, stop - start)):
            z = student[start:stop][part]
            if not len(z):
                continue
            one = chunk.beside(z, part, 1.0)
            value = FORWARD.value(one.student_lp, one.teacher_lp, tail=one.tail)
            torch.testing.assert_close(value, wanted[start:stop][part], atol=1e-12, rtol=0)


def test_drawn_ids_are_summed_as_losses():
    """Forward KL to each teacher's draws has the gradient of cross-entropy to the average of the draws."""
    ids = torch.tensor([[0, 2]])
    draws = [
        Sampled(ids, torch.tensor([[3.0, 1.0]]).double(), torch.tensor([0.5], dtype=torch.float64)),
        Sampled(ids, torch.tensor([[1.0, 1.0]]).double(), torch.tensor([0.7], dtype=torch.float64)),
    ]
    signal = together(*draws, combine="losses", kind="sampled", weights=torch.full((1, 2), 0.5).double())
    student = logits(9, rows=1)
    loss, gradient = loss_of(signal, student, FORWARD)
    mixed = Sampled(ids, torch.tensor([[5.0, 3.0]]).double())
    wanted, slope = loss_of(mixed, student, Divergence.from_module(soft_cross_entropy))
    torch.testing.assert_close(gradient, slope, atol=1e-12, rtol=0)
    assert float(loss.sum) == pytest.approx(float(wanted.sum) - 0.6, abs=1e-12)


def test_a_teacher_that_says_too_little_is_refused_and_named():
    with pytest.raises(
        SignalError, match="the teacher b says something of 2 positions, and was asked about 3"
    ):
        together(Dense(TEACHERS[0]), Dense(TEACHERS[1][:2]))


def test_a_sum_of_losses_is_not_compared_on_the_likeliest_ids_alone():
    with pytest.raises(SignalError, match="sum of several teachers' losses"):
        loss_of(dense(combine="losses"), logits(9), FORWARD, top=TopIds(2))


def test_the_likeliest_ids_are_those_of_the_average():
    signal, student = dense(), logits(9)
    average = Dense(torch.tensor(by_hand("probabilities", 1.0), dtype=torch.float64).log())
    got, wanted = (loss_of(one, student, FORWARD, top=TopIds(2))[1] for one in (signal, average))
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)
