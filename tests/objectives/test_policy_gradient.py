"""The policy gradient's settings, one by one."""

from __future__ import annotations

import math

import pytest
import torch

from builders.losses import normal, token_loss
from builders.rollouts import batch_of, gradient, row
from potstill.errors import NotFinite
from potstill.objectives.policy_gradient import PolicyGradient
from potstill.objectives.terms import reads_drawn

T, S = torch.tensor([[2.0, 1.0, 0.0]]).double(), torch.tensor([[1.0, 1.0, 1.0]]).double()
RAGGED = (
    row("a", (1,), (2, 3), student=(-1.0, -2.0), teacher=(-0.5, -3.0)),
    row("b", (1, 2), (4, 2, 1, 3), student=(-1.0, -1.5, -0.2, -2.0), teacher=(-2.0, -1.0, -0.1, -0.5)),
)
RETURNS = [-0.5, -1.0, 1.1, 2.1, 1.6, 1.5]


def test_the_expected_gradient_on_one_position_is_that_of_reverse_kl():
    """Field case 18: all three tokens, each with its probability; the naive form would give nothing."""
    q, p = S.log_softmax(-1)[0].tolist(), T.log_softmax(-1)[0].tolist()
    total = torch.zeros(3).double()
    for token in range(3):
        drawn = batch_of(row("r", (0,), (token,), student=(q[token],), teacher=(p[token],)))
        _, grad = gradient(PolicyGradient(), drawn, S)
        total += grad[0] / 3
    assert total.tolist() == pytest.approx([-1 / 3, 0, 1 / 3], abs=1e-7)
    _, exact = gradient(token_loss("reverse_kl"), drawn, S, T)
    assert total.tolist() == pytest.approx(exact[0].tolist(), abs=1e-7)


@pytest.mark.parametrize("packed", [False, True])
def test_an_advantage_is_what_follows_in_the_same_answer(packed):
    batch = batch_of(*RAGGED, packed=packed)
    assert PolicyGradient().advantages(batch).tolist() == pytest.approx(RETURNS, abs=1e-6)
    following = PolicyGradient(following=True).advantages(batch).tolist()
    assert following == pytest.approx([-1.0, 0, 2.1, 1.6, 1.5, 0], abs=1e-6)
    mean = PolicyGradient(length_normalized=True).advantages(batch).tolist()
    assert mean == pytest.approx([-0.25, -1.0, 1.1 / 4, 0.7, 0.8, 1.5], abs=1e-6)
    apart = [PolicyGradient().advantages(batch_of(one)).tolist() for one in RAGGED]
    assert [*apart[0], *apart[1]] == pytest.approx(RETURNS, abs=1e-6)


def test_rewards_are_scaled_and_then_clipped():
    got = PolicyGradient(discount=0.0, reward_scale=2.0, reward_clip=1.5).advantages(batch_of(*RAGGED))
    assert got.tolist() == pytest.approx([1.0, -1.5, -1.5, 1.0, 0.2, 1.5], abs=1e-6)


def test_whitening_counts_the_tokens_of_all_micro_batches_and_no_padding():
    whole = torch.tensor(RETURNS).double()
    term = PolicyGradient(whiten=True).prepared([batch_of(RAGGED[0]), batch_of(RAGGED[1])])
    assert term.whitened_by == pytest.approx((float(whole.mean()), float(whole.std())), abs=1e-6)
    assert term.whitened_by == pytest.approx(
        PolicyGradient(whiten=True).prepared([batch_of(*RAGGED)]).whitened_by
    )


@pytest.mark.parametrize(
    ("advantage", "moved", "clipped"), [(1, 0.5, True), (1, -0.5, False), (-1, -0.5, True)]
)
def test_a_ratio_beyond_the_clip_has_no_gradient_in_the_direction_that_it_went(advantage, moved, clipped):
    logits = normal(1, 4)
    now = float(logits.log_softmax(-1)[0, 2])
    drawn = batch_of(row("r", (1,), (2,), student=(now - moved,), teacher=(now - moved + advantage,)))
    loss, grad = gradient(PolicyGradient(clip=0.2), drawn, logits)
    assert float(loss.metrics["clipped"]) == clipped
    assert (float(grad.abs().max()) == 0) == clipped
    bound = 1.2 if moved > 0 else 0.8
    wanted = -advantage * (bound if clipped else math.exp(moved))
    assert float(loss.sum) == pytest.approx(wanted, rel=1e-5)


def test_the_gradient_is_that_of_the_loss_also_on_stale_text():
    logits, batch = normal(6, 6), batch_of(*RAGGED)
    term = PolicyGradient(teacher_share=0.3, discount=0.9)
    a, w = term.advantages(batch), term.weights(batch)
    leaf = logits.clone().requires_grad_()
    lp = leaf.log_softmax(-1).gather(1, batch.targets.unsqueeze(-1)).squeeze(-1)
    (-a * w * (lp - batch.student_lp.double()).exp()).sum().backward()
    _, grad = gradient(term, batch, logits)
    torch.testing.assert_close(grad, leaf.grad, atol=1e-12, rtol=1e-9)


def test_tokens_that_nobody_scored_are_refused():
    term, drawn = PolicyGradient(), row("r", (1,), (2, 3))
    assert reads_drawn(term)
    with pytest.raises(ValueError, match="were not scored"):
        term.advantages(batch_of(drawn))
    with pytest.raises(ValueError, match="some of the student's tokens"):
        term.advantages(batch_of(drawn, RAGGED[0]))


def test_an_id_that_the_teacher_forbids_stops_the_step_unless_rewards_are_clipped():
    drawn = batch_of(row("r", (1,), (2,), student=(-1.0,), teacher=(-torch.inf,)))
    with pytest.raises(NotFinite, match="policy_gradient"):
        gradient(PolicyGradient(), drawn, normal(1, 4))
    loss, _ = gradient(PolicyGradient(reward_clip=100.0), drawn, normal(1, 4))
    assert loss.sum.isfinite()


@pytest.mark.parametrize("packed", [False, True])
def test_a_reward_of_an_answer_reaches_its_last_token(packed):
    asked = []

    def worth(row_id, prompt, answer):
        asked.append((row_id, prompt, answer))
        return 10.0 * len(answer)

    batch = batch_of(*RAGGED, packed=packed)
    term = PolicyGradient(discount=0.0, reward=worth).prepared([batch])
    assert term.advantages(batch).tolist() == pytest.approx([0.5, 19.0, -1.0, 0.5, 0.1, 41.5], abs=1e-6)
    assert asked == [("a", (1,), (2, 3)), ("b", (1, 2), (4, 2, 1, 3))]


def test_an_empty_answer_has_no_advantage_and_asks_for_no_reward():
    batch = batch_of(row("e", (1, 2), (), student=(), teacher=()))
    term = PolicyGradient(whiten=True, reward=lambda *answer: pytest.fail("asked")).prepared([batch])
    assert term.advantages(batch).shape == (0,)
