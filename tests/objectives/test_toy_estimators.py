"""What each estimator estimates, on models small enough to sum over every answer (`builders/toy.py`).

The truth is the gradient of KL(student ‖ teacher) of whole answers, by autograd over all of them. One pair of
models serves; `docs/on-policy-estimators.md` has the ranges over others.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from builders.losses import token_loss
from builders.toy import Naive, Toy, error
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.policy_gradient import PolicyGradient
from potstill.objectives.returns import log_weights, products
from potstill.train.step import each_row_once

SEED, SHARE, EXACT = 14, 0.2, 1e-12
REVERSE = token_loss("reverse_kl")
BOTH = pytest.mark.parametrize("ends", [False, True], ids=["fixed length", "end token"])


def gradient(**settings):
    return ByOrigin(PolicyGradient(**settings), of_student=True)


def with_exact_step(**settings):
    """The exact single step and the policy gradient, weighted alike where a mixture wrote the text."""
    weighing = {key: settings[key] for key in ("importance", "teacher_share") if key in settings}
    return [(1.0, ByOrigin(REVERSE, of_student=True, **weighing)), (1.0, gradient(**settings))]


@cache
def toy(ends: bool) -> Toy:
    return Toy.of(SEED, ends=ends)


@cache
def batch(ends: bool, share: float = 0.0):
    return toy(ends).batch(toy(ends).mixture(share))


@cache
def truth(ends: bool):
    return toy(ends).reverse_kl()


def expected(ends: bool, terms, share: float = 0.0):
    return toy(ends).gradient(terms, [batch(ends, share)])


def wrong(ends: bool, terms, share: float = 0.0) -> float:
    """The relative error of an expected gradient."""
    return error(expected(ends, terms, share), truth(ends))


@BOTH
def test_every_answer_is_enumerated_and_has_its_probability(ends):
    assert len(toy(ends).answers) == (341 if ends else 625)
    for share in (0.0, SHARE, 1.0):
        assert float(toy(ends).mixture(share).sum()) == pytest.approx(1.0, abs=1e-14)


@BOTH
@pytest.mark.parametrize(
    "terms",
    [
        gradient(),
        gradient(baseline=1.0),
        gradient(baseline=-0.7),
        with_exact_step(following=True),
        gradient(clip=0.2),
        Naive(lambda q, p: 0.5 * (q - p).square(), whole=True),
    ],
    ids=["R_t", "R_t - 1", "baseline", "single step and R_{t+1}", "clip, first step", "k2 of answers"],
)
def test_the_gradient_of_whole_answers_is_estimated_without_bias(ends, terms):
    assert wrong(ends, terms) < EXACT


@BOTH
@pytest.mark.parametrize("share", [SHARE, 0.7])
def test_products_of_weights_make_text_of_a_mixture_unbiased(ends, share):
    weighed = {"importance": "cumulative", "teacher_share": share}
    for terms in (
        gradient(**weighed),
        gradient(baseline=1.0, **weighed),
        with_exact_step(following=True, **weighed),
    ):
        assert wrong(ends, terms, share) < EXACT


@BOTH
def test_one_weight_for_a_whole_answer_is_unbiased_too(ends):
    mixed = batch(ends, SHARE)
    owners = mixed.owners()
    logs = products(log_weights(mixed.student_lp, mixed.teacher_lp, SHARE), owners)
    last = torch.cat([owners[1:] != owners[:-1], torch.tensor([True])])
    whole = replace(mixed, weights=mixed.weights * logs[last][owners])
    assert error(toy(ends).gradient(gradient(), [whole]), truth(ends)) < EXACT


@BOTH
def test_the_semi_gradients_are_one_and_the_same_and_biased(ends):
    """Without what a token does to later ones: sampled token, whole vocabulary and summed k2."""
    full = expected(ends, REVERSE)
    assert error(expected(ends, gradient(discount=0.0)), full) < EXACT
    assert error(expected(ends, Naive(lambda q, p: 0.5 * (q - p).square())), full) < EXACT
    low, high = (0.62, 0.93) if ends else (0.31, 0.61)
    assert low < wrong(ends, REVERSE) < high


@BOTH
def test_a_discount_a_token_weight_and_a_length_norm_are_biased_as_much_as_they_should_be(ends):
    assert 0.02 < wrong(ends, gradient(discount=0.95)) < 0.07
    assert 0.17 < wrong(ends, gradient(teacher_share=SHARE), SHARE) < 0.38
    assert 0.56 < wrong(ends, gradient(length_normalized=True)) < 0.93


@BOTH
def test_the_token_itself_counts_once_beside_the_exact_step(ends):
    """MiniLLM's official code adds the single step to R_t, which holds r_t already."""
    assert 0.8 < wrong(ends, with_exact_step()) < 1.1
    twice = expected(ends, with_exact_step()) - truth(ends)
    assert error(twice, expected(ends, REVERSE)) < EXACT


@BOTH
def test_a_discounted_decomposition_is_the_discounted_return(ends):
    whole = expected(ends, gradient(discount=0.9))
    assert error(expected(ends, with_exact_step(following=True, discount=0.9)), whole) < EXACT


@BOTH
@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"reward_clip": 1.0}, 0.0),
        ({"clip": 0.2, "teacher_share": SHARE}, SHARE),
        ({"importance": "none", "teacher_share": SHARE}, SHARE),
    ],
    ids=["reward clip", "clip of a mixture", "mixture without weights"],
)
def test_other_settings_are_biased(ends, settings, share):
    assert wrong(ends, gradient(**settings), share) > 0.05


@BOTH
def test_text_of_another_temperature_is_biased(ends):
    warm = toy(ends).log_probabilities(toy(ends).student / 0.7).exp()
    assert error(toy(ends).gradient(gradient(), [toy(ends).batch(warm)]), truth(ends)) > 0.05


@BOTH
def test_ratios_of_single_tokens_leave_stale_text_biased(ends):
    """Text of a student of before: the weights of its prefixes are missing, the rewards are those of before."""
    now = toy(ends)
    before = replace(now, student=now.student + 0.5 * torch.sin(torch.arange(30.0)).double().view(6, 5))
    stale = before.batch(before.mixture(0.0))
    assert error(now.gradient(gradient(), [stale]), truth(ends)) > 0.05


@BOTH
def test_whitening_leaves_the_direction(ends):
    got = expected(ends, gradient(whiten=True))
    cosine = torch.cosine_similarity(got.flatten(), truth(ends).flatten(), dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-12)


@BOTH
def test_a_mean_over_each_answer_is_only_a_scale_where_all_are_as_long(ends):
    got = toy(ends).gradient(gradient(), [each_row_once(batch(ends))])
    if not ends:
        assert error(got, truth(ends) / 4) < EXACT
        return
    cosine = torch.cosine_similarity(got.flatten(), truth(ends).flatten(), dim=0)
    assert 0.35 < float(cosine) < 0.95


@BOTH
def test_k1_is_no_loss_and_k3_of_answers_is_forward_kl(ends):
    nothing = expected(ends, Naive(lambda q, p: q - p, whole=True))
    assert float(nothing.norm()) < EXACT
    k3 = expected(ends, Naive(lambda q, p: (p - q).exp() - 1 - (p - q), whole=True))
    assert error(k3, toy(ends).forward_kl()) < EXACT


@BOTH
def test_the_whole_vocabulary_is_less_noisy_than_the_sampled_token(ends):
    full, sampled = (
        toy(ends).noise(terms, batch(ends), every=3) for terms in (REVERSE, gradient(discount=0.0))
    )
    assert 0.12 < full / sampled < 0.25  # about a fifth


@BOTH
@pytest.mark.parametrize(
    "settings",
    [{}, {"discount": 0.0}, {"whiten": True}, {"length_normalized": True, "clip": 0.2}, {"following": True}],
    ids=str,
)
def test_a_student_that_equals_its_teacher_has_no_advantage_no_loss_and_no_gradient(ends, settings):
    equal = replace(toy(ends), teacher=toy(ends).student)
    every = equal.batch(equal.mixture(0.0))
    assert float(PolicyGradient(**settings).advantages(every).abs().max()) == 0.0
    assert float(equal.gradient(gradient(**settings), [every]).norm()) == 0.0


@BOTH
@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_a_divergence_on_rollouts_vanishes_where_the_student_equals_its_teacher(ends, name):
    equal = replace(toy(ends), teacher=toy(ends).student)
    term = ByOrigin(token_loss(name), of_student=True)
    assert float(equal.expected([(1.0, term)]).norm()) < EXACT


@BOTH
def test_a_baseline_and_a_reward_of_nothing_vanish_in_expectation_at_equality(ends):
    equal = replace(toy(ends), teacher=toy(ends).student)
    term = gradient(baseline=1.0, reward=lambda row, prompt, answer: 0.0)
    assert float(equal.expected([(1.0, term)]).norm()) < EXACT


@BOTH
def test_a_reward_of_answers_is_climbed(ends):
    """With it the objective is E[reward] - KL: its gradient by enumeration."""

    def worth(row: str, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
        return 0.3 * answer.count(2) - 0.1 * answer[0]

    worths = torch.tensor([worth("", (), y) for y in toy(ends).answers], dtype=torch.float64)
    wanted = toy(ends).truth(lambda q, p: (q.exp() * (q - p - worths)).sum())
    weighed = {"importance": "cumulative", "teacher_share": SHARE}
    for terms, share in (
        (gradient(reward=worth), 0.0),
        (with_exact_step(following=True, reward=worth), 0.0),
        (with_exact_step(following=True, reward=worth, **weighed), SHARE),
    ):
        assert error(expected(ends, terms, share), wanted) < EXACT
