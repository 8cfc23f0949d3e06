"""Named weights of tokens: their values, their gradient, and one divisor, the sum of all weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from builders.jobs import FORWARD
from builders.losses import normal
from builders.steps import ragged_rows
from builders.tiny import tiny_model
from potstill import DistillationLoss
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.errors import RecipeError, RecipeErrors, SignalError
from potstill.objectives.token import Divergence, TokenLoss, TokenWeight
from potstill.recipe import plugins
from potstill.signals.dense import Dense
from potstill.signals.sampled import Sampled
from potstill.signals.topk import TopK
from potstill.teachers.local import LocalTeacher
from potstill.token_weights import entropy, position
from potstill.train.step import StudentModule, accumulate

EVEN = torch.full((1, 8), 1 / 8).log()
SURE = torch.tensor([[1.0] + [0.0] * 7]).log()


def test_entropy_weighs_from_the_floor_to_one():
    lp, place = torch.cat([EVEN, SURE]), torch.zeros(2)
    assert entropy.weights(lp, lp, place).tolist() == pytest.approx([1.0, 0.1])
    assert entropy.weights(lp, lp, place, floor=0.0, certain=True).tolist() == pytest.approx(
        [0.0, 1.0], abs=1e-6
    )
    assert entropy.weights(EVEN, SURE, place[:1], of="student").item() == pytest.approx(1.0)
    assert entropy.weights(EVEN, SURE, place[:1], of="teacher").item() == pytest.approx(0.1)


def test_position_halves_every_half_life():
    place, lp = torch.tensor([0, 4, 8]), torch.zeros(3, 2)
    assert position.weights(lp, lp, place, half_life=4).tolist() == pytest.approx([1, 0.5, 0.25])
    assert position.weights(lp, lp, place, half_life=4, floor=0.5).tolist() == pytest.approx([1, 0.75, 0.625])


@pytest.mark.parametrize(
    ("weigh", "options"),
    [
        (entropy.weights, {"floor": 2.0}),
        (position.weights, {"half_life": 0.0}),
        (position.weights, {"floor": -1.0}),
    ],
)
def test_options_out_of_range_are_refused(weigh, options):
    with pytest.raises(RecipeError, match="Give"):
        weigh(EVEN, EVEN, torch.zeros(1), **options)


def gradient(sizes: list[int], weigh) -> tuple[dict[str, Tensor], float]:
    rows, student = ragged_rows(), tiny_model(seed=0)
    module = StudentModule(student, 128)
    batches, start = [], 0
    for size in sizes:
        batches.append(collate(rows[start : start + size], pad_id=0))
        start += size
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    result = accumulate(module, teacher, batches, TokenLoss(Divergence.from_module(forward_kl), weigh=weigh))
    return {name: p.grad for name, p in module.named_parameters()}, result.means()["loss"]


@pytest.mark.parametrize("weigh", [entropy.weights, position.weights])
def test_a_step_divides_by_the_sum_of_all_weights_for_any_split(weigh):
    whole, loss = gradient([7], weigh)
    cut, again = gradient([1, 2, 4], weigh)
    assert again == pytest.approx(loss, rel=1e-6)
    for name, wanted in whole.items():
        torch.testing.assert_close(cut[name], wanted, rtol=1e-5, atol=1e-6)


def test_a_weight_that_all_tokens_share_changes_nothing():
    plain, loss = gradient([7], None)
    tripled, again = gradient([7], lambda s, t, place: torch.full_like(place, 3.0, dtype=s.dtype))
    assert again == pytest.approx(loss, rel=1e-6)
    for name, wanted in plain.items():
        torch.testing.assert_close(tripled[name], wanted, rtol=1e-5, atol=1e-6)


def test_the_drop_in_loss_takes_weights_by_name_and_reports_their_sum():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64).requires_grad_()
    t = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    out = DistillationLoss(token_weights={"position": {"half_life": 1.0}}).from_logits(z, t, mask)
    weights = torch.tensor([1, 0.5, 0.25, 1, 0.5], dtype=torch.float64)
    s, p = z.log_softmax(-1)[mask], t.log_softmax(-1)[mask]
    wanted = ((p.exp() * (p - s)).sum(-1) * weights).sum()
    torch.testing.assert_close(out.sum, wanted)
    assert float(out.metrics["weight"]) == pytest.approx(3.25)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (out.sum, wanted)))


def test_weights_do_not_carry_a_gradient():
    """The student's own entropy weighs its tokens; pushing the entropy down must not be a way to win."""
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    t = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.ones(4, dtype=torch.bool)
    out = DistillationLoss(token_weights={"entropy": {"of": "student"}}).from_logits(z, t, mask)
    s, p = z.log_softmax(-1), t.log_softmax(-1)
    fixed = entropy.weights(s.detach(), p, torch.arange(4), of="student")
    wanted = ((p.exp() * (p - s)).sum(-1) * fixed).sum()
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (out.sum, wanted)))


def test_a_name_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(RecipeErrors, match="did you mean entropy"):
        plugins.load("token_weights", "entropi", {})


def test_weights_without_a_distribution_are_refused():
    loss = TokenLoss(Divergence.from_module(forward_kl), ce_weight=1.0, weigh=entropy.weights)
    with pytest.raises(SignalError, match="ce_weight below 1"):
        loss.rowwise(Dense(torch.zeros(1, 4)), torch.zeros(1, dtype=torch.int64), place=torch.zeros(1))


def test_the_entropy_weight_of_a_certain_token_is_finite():
    lp = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert torch.isfinite(entropy.weights(lp, lp, torch.zeros(1))).all()


def test_a_mean_with_named_weights_divides_by_their_sum():
    z, t = torch.randn(4, 5), torch.randn(4, 5)
    out = DistillationLoss(token_weights={"position": {"half_life": 1.0}}).from_logits(z, t, torch.ones(4))
    assert float(out.mean) == pytest.approx(float(out.sum) / 1.875)


def test_a_choice_of_token_weights_is_one_name_that_exists():
    for wrong in ({}, {"entropy": {}, "position": {}}):
        with pytest.raises(SignalError, match="token_weights names"):
            DistillationLoss(token_weights=wrong)
    with pytest.raises(RecipeErrors, match="did you mean entropy"):
        DistillationLoss(token_weights="entropie")


def test_the_entropy_weight_ignores_the_padding_of_stored_ids():
    named = TokenWeight.from_module(plugins.load("token_weights", "entropy", {}), {"floor": 0.0})
    logits = normal(2, 7)
    lp = torch.tensor([[0.5, 0.2, 0.1], [0.3, 0.3, 0.2]]).double().log()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    sums = []
    for unused in (0, 3):
        wide = TopK(
            torch.cat([ids, torch.full((2, unused), -1)], 1), torch.cat([lp, lp.new_zeros(2, unused)], 1)
        )
        rowwise = TokenLoss(FORWARD, weigh=named).rowwise(wide, place=torch.zeros(2))
        sums.append(float(rowwise(logits.clone(), slice(0, 2), False)[1]["weight"]))
    p = torch.cat([lp.exp(), 1 - lp.exp().sum(1, keepdim=True)], 1)
    wanted = float((-(p * p.log()).sum(1) / math.log(4)).sum())
    assert sums == pytest.approx([wanted, wanted])


def test_an_entropy_weight_is_refused_for_drawn_ids():
    named = TokenWeight.from_module(plugins.load("token_weights", "entropy", {}), {})
    drawn = Sampled(torch.tensor([[1, 2]]), torch.tensor([[3.0, 1.0]]), torch.tensor([1.0]))
    with pytest.raises(SignalError, match="entropy cannot be read from sampled signals"):
        TokenLoss(FORWARD, weigh=named).rowwise(drawn, place=torch.zeros(1))
    named = TokenWeight.from_module(plugins.load("token_weights", "position", {}), {})
    TokenLoss(FORWARD, weigh=named).rowwise(drawn, place=torch.zeros(1))


def test_flat_hidden_states_keep_the_position_weights_of_their_rows():
    loss = DistillationLoss("forward_kl", token_weights={"position": {"half_life": 2.0}})
    student, teacher, head, other = (
        normal(*s, seed=i) for i, s in enumerate([(3, 5, 8), (3, 5, 8), (20, 8), (20, 8)])
    )
    mask = torch.tensor([[0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0]]).bool()
    whole = loss(student, head, teacher, other, mask).mean
    flat = loss(student.flatten(0, 1), head, teacher.flatten(0, 1), other, mask.flatten()).mean
    torch.testing.assert_close(flat, whole)


def test_a_mask_that_is_true_at_a_rows_end_does_not_join_the_next_row():
    """Whoever has cut the last logit off scores the last column."""
    loss = DistillationLoss("forward_kl", token_weights={"position": {"half_life": 2.0}})
    student, teacher = normal(2, 4, 20), normal(2, 4, 20, seed=1)
    mask = torch.ones(2, 4).bool()
    both = loss.from_logits(student, teacher, mask)
    apart = [loss.from_logits(student[i : i + 1], teacher[i : i + 1], mask[:1]) for i in range(2)]
    torch.testing.assert_close(both.sum, apart[0].sum + apart[1].sum)
    torch.testing.assert_close(both.metrics["weight"], sum(one.metrics["weight"] for one in apart))


def test_weights_that_are_all_zero_give_a_loss_of_zero():
    hidden = normal(1, 4, 8).requires_grad_()
    sure = torch.zeros(20, 8).double()
    sure[0] = 1e4
    teacher = torch.ones(1, 4, 8).double()
    loss = DistillationLoss("forward_kl", token_weights={"entropy": {"floor": 0.0}})
    out = loss(hidden, normal(20, 8), teacher, sure, torch.ones(1, 4).bool())
    assert float(out.metrics["weight"]) == 0
    out.mean.backward()
    assert float(out.mean.detach()) == 0
    assert not hidden.grad.any()
