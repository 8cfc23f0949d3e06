"""Intervals resample prompts and cover what they claim; a share is refused where it means nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from potstill.evaluate import stats
from potstill.types import Figure


def test_the_value_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    metric = stats.ratio([1.0, 9.0], [1.0, 3.0])
    assert metric.value == pytest.approx(2.5)
    assert metric.n == 2


def test_prompts_without_tokens_do_not_count():
    assert stats.ratio([1.0, 0.0], [2.0, 0.0]).n == 1
    empty = stats.ratio([], [])
    assert empty.n == 0
    assert empty.value is None
    assert empty.reason == "no prompt could be measured"


def test_a_value_that_is_not_finite_is_absent_with_its_reason():
    """JSON has no infinity, and a perplexity of one says nothing."""
    endless = stats.ratio([1e6, 2.0], [1.0, 1.0], transform=np.exp)
    assert endless.value is None
    assert "not a finite number (inf" in endless.reason


def test_a_figure_keeps_its_description():
    about = Figure("ppl", label="Perplexity", unit="", better="down", meaning="exp")
    figure = stats.ratio([2.0], [1.0], figure=about)
    assert replace(figure, value=None, low=None, high=None, n=None, pairs=()) == about
    assert Figure(**figure.stored()) == replace(figure, pairs=())


def pair_of_models(n: int = 40, shift: float = 0.1) -> list[Figure]:
    """Prompts differ by much more than the two models do on any of them."""
    dice = np.random.default_rng(3)
    lengths = dice.integers(5, 60, n).astype(float)
    level = dice.gamma(1.0, 1.0, n)
    return [
        stats.ratio(
            lengths * (level + more + dice.normal(0, 0.05, n)), lengths, figure=Figure("kl", better="down")
        )
        for more in (0.0, shift)
    ]


def test_a_paired_interval_is_clear_where_the_models_own_intervals_overlap():
    one, other = pair_of_models()
    assert one.low < other.low < one.high < other.high
    paired = stats.difference(one, other)
    assert paired.value == pytest.approx(one.value - other.value)
    assert paired.low < paired.value < paired.high < 0
    assert (paired.n, paired.better) == (40, "down")
    mirrored = stats.difference(other, one)
    assert (mirrored.low, mirrored.high) == pytest.approx((-paired.high, -paired.low))


def test_a_model_does_not_differ_from_itself():
    one, _ = pair_of_models()
    paired = stats.difference(one, one)
    assert (paired.value, paired.low, paired.high) == (0, 0, 0)


def test_a_difference_of_perplexities_is_in_their_unit():
    one, other = (
        stats.ratio(top, [2.0, 3.0, 4.0], transform=np.exp) for top in ([2.0, 4.0, 9.0], [1.0, 4.0, 6.0])
    )
    assert stats.difference(one, other).value == pytest.approx(one.value - other.value)


def test_only_prompts_that_both_models_were_measured_on_are_compared():
    one, other = stats.ratio([1.0, 2.0, 9.0], [1.0, 2.0, 0.0]), stats.ratio([1.0, 2.0, 3.0], [0.0, 2.0, 3.0])
    paired = stats.difference(one, other)
    assert (paired.value, paired.n) == (0.0, 1)
    nobody = stats.difference(stats.ratio([1.0, 0.0], [1.0, 0.0]), stats.ratio([0.0, 1.0], [0.0, 1.0]))
    assert (nobody.value, nobody.reason) == (None, "no prompt could be measured with both models")


@pytest.mark.parametrize("other", [Figure("kl", 0.0, reason="by definition"), Figure("kl", reason="why not")])
def test_a_figure_without_prompts_has_no_paired_difference(other):
    one, _ = pair_of_models()
    paired = stats.difference(one, other)
    assert paired.value is None
    assert paired.reason == ("not measured prompt by prompt" if other.value == 0 else "why not")


def test_a_share_is_refused_where_other_prompts_were_measured():
    """As many, but not the same ones."""
    one, other = stats.ratio([1.0] * 30, [1.0] * 29 + [0.0]), stats.ratio([1.0] * 30, [0.0] + [1.0] * 29)
    assert stats.retained(one, other).reason == "teacher and student were measured on different prompts"


def test_perplexity_is_the_exponential_of_the_mean_with_its_interval():
    plain = stats.ratio([2.0, 4.0, 9.0], [2.0, 3.0, 4.0], seed=1)
    shaped = stats.ratio([2.0, 4.0, 9.0], [2.0, 3.0, 4.0], seed=1, transform=np.exp)
    assert shaped.value == pytest.approx(math.exp(plain.value))
    assert (shaped.low, shaped.high) == pytest.approx((math.exp(plain.low), math.exp(plain.high)))


@pytest.mark.parametrize(("n", "least"), [(60, 0.90), (200, 0.92)])
def test_intervals_cover_a_token_weighted_mean_as_often_as_they_claim(n, least):
    """Rows of different lengths whose tokens share a row's own level, as tokens of one answer do."""
    dice = np.random.default_rng(0)
    hits, trials = 0, 400
    for trial in range(trials):
        lengths = dice.integers(5, 120, n).astype(float)
        levels = dice.gamma(2.0, 0.25, n)
        metric = stats.ratio(lengths * levels, lengths, resamples=500, seed=trial)
        hits += metric.low <= 0.5 <= metric.high
    assert hits / trials >= least


def test_a_share_kept_is_resampled_on_the_same_prompts():
    dice = np.random.default_rng(0)
    theirs = dice.uniform(0.2, 0.9, 80)
    teacher = stats.ratio(theirs.tolist(), [1.0] * 80)
    student = stats.ratio((0.8 * theirs).tolist(), [1.0] * 80)
    kept = stats.retained(teacher, student)
    assert (kept.value, kept.low, kept.high) == pytest.approx((0.8, 0.8, 0.8))


def test_a_share_is_refused_where_the_teacher_does_not_clearly_succeed():
    one = stats.ratio([1.0] * 80, [1.0] * 80)
    assert "includes 0" in stats.retained(stats.ratio([0.0] * 80, [1.0] * 80), one).reason
    few = stats.ratio([1.0] * 15 + [0.0] * 65, [1.0] * 80)
    assert "only 15 prompts" in stats.retained(few, one).reason
    assert "different prompts" in stats.retained(one, stats.ratio([1.0] * 40, [1.0] * 40)).reason


def seeded(values: np.ndarray, tokens: float = 1.0) -> Figure:
    return stats.ratio((values * tokens).tolist(), [tokens] * len(values))


def test_the_mean_of_one_run_is_the_run_with_its_own_interval():
    run = stats.ratio([2.0, 4.0, 9.0, 0.0], [2.0, 3.0, 4.0, 0.0], transform=np.exp)
    mean = stats.mean([run])
    assert (mean.value, mean.low, mean.high, mean.n) == pytest.approx((run.value, run.low, run.high, 3))


def test_the_mean_of_several_runs_draws_prompts_and_runs():
    """Runs that agree on every prompt have the interval of one; a spread between runs widens it."""
    prompts = np.random.default_rng(0).uniform(0.2, 0.9, 60)
    one, alike = stats.mean([seeded(prompts)]), stats.mean([seeded(prompts)] * 3)
    assert (alike.value, alike.low, alike.high) == pytest.approx((one.value, one.low, one.high))
    apart = stats.mean([seeded(prompts + shift) for shift in (-0.2, 0.0, 0.2)])
    assert apart.value == pytest.approx(one.value)
    assert apart.low < one.low - 0.05
    assert apart.high > one.high + 0.05


def test_a_mean_without_prompts_is_the_mean_of_the_values_without_an_interval():
    runs = [Figure("speed", value=2.0, low=1.0, high=3.0), Figure("speed", value=4.0)]
    mean = stats.mean(runs)
    assert (mean.value, mean.interval, mean.reason) == (3.0, None, "not measured on the same prompts")
    assert stats.mean(runs[:1]) == runs[0]
    assert stats.mean([*runs, Figure("speed", reason="not measured")]).reason == "not measured"


def test_a_difference_of_means_draws_the_same_prompts_on_both_sides():
    prompts = np.random.default_rng(0).uniform(0.2, 0.9, 60)
    ours = [seeded(prompts + 0.1), seeded(prompts + 0.1)]
    apart = stats.mean_difference(ours, [seeded(prompts)], paired_runs=False)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.1, 0.1, 0.1))
    assert apart.n == 60


def test_runs_of_the_same_seeds_are_drawn_together():
    """What a seed does to both sides is no difference between them."""
    prompts = np.random.default_rng(0).uniform(0.2, 0.9, 60)
    theirs = [seeded(prompts + shift) for shift in (-0.2, 0.0, 0.3)]
    ours = [seeded(prompts + shift + 0.1) for shift in (-0.2, 0.0, 0.3)]
    together = stats.mean_difference(ours, theirs, paired_runs=True)
    assert (together.value, together.low, together.high) == pytest.approx((0.1, 0.1, 0.1))
    alone = stats.mean_difference(ours, theirs, paired_runs=False)
    assert alone.value == pytest.approx(0.1)
    assert alone.low < 0 < alone.high


def test_a_difference_counts_the_prompts_that_every_run_measured():
    ours, theirs = (
        stats.ratio([1.0, 2.0, 0.0], [1.0, 1.0, 0.0]),
        stats.ratio([1.0, 0.0, 3.0], [1.0, 0.0, 1.0]),
    )
    apart = stats.mean_difference([ours], [theirs], paired_runs=True)
    assert (apart.value, apart.n) == (0.0, 1)
    other = stats.mean_difference([ours], [stats.ratio([1.0], [1.0])], paired_runs=True)
    assert (other.value, other.reason) == (None, "not measured on the same prompts")
    missing = stats.mean_difference([ours], [replace(theirs, value=None, reason="gone")], paired_runs=True)
    assert missing.reason == "gone"


def test_a_paired_difference_of_equals_covers_zero_as_often_as_it_claims():
    dice, hits = np.random.default_rng(0), 0
    for trial in range(200):
        prompts = dice.gamma(2.0, 0.25, 60)
        one, other = (seeded(prompts + dice.normal(0, 0.1, 60)) for _ in range(2))
        apart = stats.mean_difference([one], [other], paired_runs=True, resamples=500, seed=trial)
        hits += apart.low <= 0 <= apart.high
    assert hits / 200 >= 0.90
