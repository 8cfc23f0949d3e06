"""Pairs of the teacher's and the student's answers in one step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from builders.losses import normal
from builders.rollouts import batch_of, row, view
from potstill.objectives.preference import Preference
from potstill.objectives.terms import prepared
from potstill.signals.text import Text

WIDTH = 7
BETTER = row("a", (1,), (2, 3, 4), origin="teacher", teacher=(-1.0, -1.0, -0.5))
WORSE = row("a@3", (1,), (5, 2), of="a", teacher=(-3.0, -0.25))
ALONE = row("b@3", (1,), (5, 2), of="b", teacher=(-3.0, -0.25))
LOGITS = normal(5, WIDTH)


def scored(example, logits):
    """The row with log q of its answer under these logits, as a student right before the step says."""
    targets = torch.tensor(example.input_ids[-len(logits) :]).unsqueeze(-1)
    lp = logits.log_softmax(-1).gather(1, targets)
    return replace(example, student_lp=tuple(lp.squeeze(-1).tolist()))


def by_hand(beta: float) -> tuple[float, torch.Tensor]:
    """The loss of the one pair, and its gradient by all logits, by autograd."""
    leaf = LOGITS.clone().requires_grad_()
    ids = torch.tensor([2, 3, 4, 5, 2]).unsqueeze(-1)
    q = leaf.log_softmax(-1).gather(1, ids).squeeze(-1)
    p = torch.tensor([-1.0, -1.0, -0.5, -3.0, -0.25]).double()
    ratio = q - p
    loss = -torch.nn.functional.logsigmoid(beta * (ratio[:3].sum() - ratio[3:].sum()))
    loss.backward()
    return float(loss.detach()), leaf.grad


def step(term: Preference, parts):
    """Loss and gradients of several micro-batches of one step, each a batch with its logits."""
    ((_, term),) = prepared(term, [batch for batch, _ in parts])
    losses, grads, sums = [], [], {}
    for batch, logits in parts:
        leaf = logits.clone().requires_grad_()
        loss = term(view(batch, leaf), Text())
        loss.sum.backward()
        losses.append(float(loss.sum.detach()))
        grads.append(leaf.grad)
        for name, value in loss.metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    return sum(losses), torch.cat(grads), sums


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("apart", [False, True], ids=["one micro-batch", "two"])
def test_a_pair_has_the_loss_and_the_gradient_of_its_formula(beta, apart):
    better, worse = scored(BETTER, LOGITS[:3]), scored(WORSE, LOGITS[3:])
    parts = [(batch_of(better, worse), LOGITS)]
    if apart:
        parts = [(batch_of(better), LOGITS[:3]), (batch_of(worse), LOGITS[3:])]
    loss, grad, sums = step(Preference(beta), parts)
    value, wanted = by_hand(beta)
    # A step divides by its five tokens: what is left is the mean over pairs.
    assert loss / 5 == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(grad / 5, wanted, atol=1e-6, rtol=1e-5)
    assert sums["preference"] / 5 == pytest.approx(value, rel=1e-6)
    assert sums["preferred"] / 5 in (0.0, pytest.approx(1.0))


def test_an_answer_without_a_partner_adds_nothing():
    better, worse = scored(BETTER, LOGITS[:3]), scored(WORSE, LOGITS[3:])
    more, logits = batch_of(better, worse, ALONE), torch.cat([LOGITS, LOGITS[3:]])
    loss, grad, _ = step(Preference(), [(more, logits)])
    assert loss / 7 == pytest.approx(by_hand(0.1)[0], rel=1e-6)
    assert float(grad[5:].abs().max()) == 0
    nothing, grad, _ = step(Preference(), [(batch_of(ALONE), LOGITS[3:])])
    assert (nothing, float(grad.abs().max())) == (0.0, 0.0)


def test_each_answer_of_the_student_has_a_pair_with_the_teachers():
    rows = [scored(BETTER, LOGITS[:3]), scored(WORSE, LOGITS[3:])]
    second = scored(replace(WORSE, id="a@3#1"), LOGITS[3:])
    loss, _, _ = step(Preference(), [(batch_of(*rows, second), torch.cat([LOGITS, LOGITS[3:]]))])
    assert loss / 7 == pytest.approx(by_hand(0.1)[0], rel=1e-6)


def test_answers_to_different_turns_of_a_conversation_are_no_pair():
    """Each turn's answer stands beside the student's answers to the same turn."""
    turns = [replace(BETTER, id=f"talk#{n}", part_of="talk") for n in (1, 2)]
    own = [replace(WORSE, id=f"talk#{n}@3", part_of="talk", answers=f"talk#{n}") for n in (1, 2)]
    likely = [scored(turns[0], LOGITS[:3]), scored(turns[1], 3 * LOGITS[:3])]
    parts = Preference(1.0).prepared([batch_of(*likely, *(scored(one, LOGITS[3:]) for one in own))]).parts
    ratios = [sum(one.student_lp) - sum(one.teacher_lp) for one in (*likely, scored(own[0], LOGITS[3:]))]
    for turn, ratio in zip(turns, ratios, strict=False):
        slope = 1 / (1 + math.exp(ratio - ratios[2]))
        assert parts[turn.id, False].slope == pytest.approx(-slope, rel=1e-5)
        assert parts[f"{turn.id}@3", True].slope == pytest.approx(slope, rel=1e-5)


def test_equal_models_prefer_neither_and_answers_pull_with_equal_strength():
    same = [
        replace(one, teacher_lp=one.student_lp)
        for one in (scored(BETTER, LOGITS[:3]), scored(WORSE, LOGITS[3:]))
    ]
    term = Preference(0.1).prepared([batch_of(*same)])
    assert sorted(part.slope for part in term.parts.values()) == pytest.approx([-0.05, 0.05])
    assert sum(part.value for part in term.parts.values()) == pytest.approx(math.log(2))


def test_weights_of_rows_and_tokens_play_no_part():
    better, worse = (
        replace(one, weight=3.0) for one in (scored(BETTER, LOGITS[:3]), scored(WORSE, LOGITS[3:]))
    )
    loss, _, _ = step(Preference(), [(batch_of(better, worse), LOGITS)])
    assert loss / 15 == pytest.approx(by_hand(0.1)[0], rel=1e-6)


def test_a_pair_that_nobody_scored_is_refused():
    with pytest.raises(ValueError, match="rows a and a@3 are a pair and were not scored"):
        Preference().prepared([batch_of(BETTER, scored(WORSE, LOGITS[3:]))])
