"""Intervals by resampling prompts, never tokens: tokens of one answer are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from potstill.types import Figure

Transform = Callable[[np.ndarray], np.ndarray]
UNNAMED = Figure("ratio")
FEWEST = 20  # prompts on which a teacher must succeed before a share of its score means anything


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    figure: Figure = UNNAMED,
    resamples: int = 2000,
    seed: int = 0,
    transform: Transform | None = None,
) -> Figure:
    """sum(numerators) / sum(denominators) with a 95 % percentile interval (Efron & Tibshirani 1993).

    Args:
        numerators, denominators: one pair a prompt; prompts with denominator 0 are left out.
        figure: what is measured; its value, interval and n are filled in.
        transform: applied to the ratio and to every resampled one (exp for a perplexity).

    Returns:
        the figure; without a value where no prompt could be measured or the value is not finite.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    used = bottom > 0
    pairs = tuple(zip(np.where(used, top, 0.0).tolist(), bottom.tolist(), strict=True))
    top, bottom = top[used], bottom[used]
    n = len(top)
    if n == 0:
        return replace(figure, n=0, reason="no prompt could be measured")
    picks = _picks(n, resamples, seed)
    shape = transform or (lambda values: values)
    with np.errstate(over="ignore"):  # the reason below names it
        draws = shape(top[picks].sum(1) / bottom[picks].sum(1))
        value = float(shape(np.asarray(top.sum() / bottom.sum())))
    if not np.isfinite([value, *draws]).all():
        return replace(figure, n=n, reason=f"not a finite number ({value}, up to {draws.max()} resampled)")
    low, high = _ends(draws)
    return replace(figure, value=value, low=low, high=high, n=n, pairs=pairs, shape=transform)


def statistic(
    counts: Sequence[Sequence[float]],
    function: Transform,
    *,
    figure: Figure = UNNAMED,
    resamples: int = 2000,
    seed: int = 0,
) -> Figure:
    """A value of counts summed over prompts that is no ratio of two of them, with a 95 % percentile interval.

    Args:
        counts: the same k counts of each prompt; prompts where all are 0 are left out.
        function: from sums [draws, k] to values [draws].

    Returns:
        the figure; without a value where no prompt counts.
    """
    table = np.asarray(counts, dtype=float).reshape(len(counts), -1)
    used = table[table.any(axis=1)]
    if not len(used):
        return replace(figure, n=0, reason="no prompt could be measured")
    value = float(function(used.sum(0, keepdims=True))[0])
    low, high = _ends(function(_times(len(used), resamples, seed) @ used))
    kept = tuple(map(tuple, table.tolist()))
    return replace(
        figure, value=value, low=low, high=high, n=len(used), counts=kept, statistic=function, pairs=()
    )


def _difference_of_counts(one: Figure, other: Figure, about: Figure, resamples: int, seed: int) -> Figure:
    """`difference` of two figures that `statistic` made."""
    function = one.statistic
    assert function is not None
    ours, theirs = np.asarray(one.counts), np.asarray(other.counts)
    both = ours.any(axis=1) & theirs.any(axis=1)
    n = int(both.sum())
    if n == 0:
        return replace(about, n=0, reason="no prompt could be measured with both models")
    times = _times(n, resamples, seed)
    (value,) = function(ours[both].sum(0, keepdims=True)) - function(theirs[both].sum(0, keepdims=True))
    low, high = _ends(function(times @ ours[both]) - function(times @ theirs[both]))
    return replace(about, value=float(value), low=low, high=high, n=n, reason="")


def difference(one: Figure, other: Figure, *, resamples: int = 2000, seed: int = 0) -> Figure:
    """one - other of the same figure of two models, with a paired 95 % interval: both on the same prompts, drawn
    together.

    Returns:
        the difference over the prompts that both were measured on, or why there is none.
    """
    about = replace(one, value=None, low=None, high=None, n=None, pairs=(), floors=(), shape=None, floor=None)
    about = replace(about, counts=(), statistic=None)
    if one.value is None or other.value is None:
        return replace(about, reason=one.reason if one.value is None else other.reason)
    if one.counts and np.shape(one.counts) == np.shape(other.counts):
        return _difference_of_counts(one, other, about, resamples, seed)
    if not one.pairs or len(one.pairs) != len(other.pairs):
        return replace(about, reason="not measured prompt by prompt")
    ours, theirs = np.asarray(one.pairs), np.asarray(other.pairs)
    both = (ours[:, 1] > 0) & (theirs[:, 1] > 0)
    n = int(both.sum())
    if n == 0:
        return replace(about, n=0, reason="no prompt could be measured with both models")
    picks, shape = _picks(n, resamples, seed), one.shape or (lambda values: values)

    def of(pairs: np.ndarray) -> tuple[float, np.ndarray]:
        pairs = pairs[both]
        drawn = pairs[picks].sum(1)
        top, bottom = pairs.sum(0)
        return float(shape(top / bottom)), shape(drawn[:, 0] / drawn[:, 1])

    (our_value, our_draws), (their_value, their_draws) = of(ours), of(theirs)
    low, high = _ends(our_draws - their_draws)
    return replace(about, value=our_value - their_value, low=low, high=high, n=n, reason="")


def retained(teacher: Figure, student: Figure, *, resamples: int = 2000, seed: int = 0) -> Figure:
    """student / teacher of a higher-is-better figure, both above its floor and resampled on the same prompts.

    Returns:
        the share kept, or why there is none: the teacher's own interval includes 0, it succeeded on fewer
        than 20 prompts, one of the two is not clearly above what an answer that knows nothing reaches, or
        they were measured on different prompts.
    """
    share = Figure(
        teacher.key, label=teacher.label, unit="share", floor=teacher.floor, floor_of=teacher.floor_of
    )
    if not teacher.low or teacher.low <= 0:
        return replace(share, reason="the teacher's own interval includes 0")
    succeeded = sum(top > 0 for top, _ in teacher.pairs)
    if succeeded < FEWEST:
        reason = f"the teacher scores above 0 on only {succeeded} prompts, and {FEWEST} are needed"
        return replace(share, reason=reason)
    if len(teacher.pairs) != len(student.pairs) or student.value is None or teacher.value is None:
        return replace(share, reason="teacher and student were measured on different prompts")
    theirs, ours = np.asarray(teacher.pairs), np.asarray(student.pairs)
    floors = np.asarray(teacher.floors or [0.0] * len(theirs))
    both = (theirs[:, 1] > 0) & (ours[:, 1] > 0)
    if not np.array_equal(both, (theirs[:, 1] > 0) | (ours[:, 1] > 0)):
        return replace(share, reason="teacher and student were measured on different prompts")
    theirs, ours, floors = theirs[both], ours[both], floors[both]
    theirs[:, 0] -= floors
    ours[:, 0] -= floors
    picks = _picks(len(theirs), resamples, seed)
    above_t, above_s = (sums[:, 0] / sums[:, 1] for sums in (theirs[picks].sum(1), ours[picks].sum(1)))
    for who, above, value in (("teacher", above_t, teacher.value), ("student", above_s, student.value)):
        if teacher.floors and _ends(above)[0] <= 0:
            reason = (
                f"the {who}'s {value:.3f} is not clearly above the {teacher.floor:.3f} that "
                f"{teacher.floor_of} reaches"
            )
            return replace(share, reason=reason)
    low, high = _ends(above_s / above_t)
    floor = teacher.floor or 0.0
    kept = (student.value - floor) / (teacher.value - floor)
    return replace(share, value=kept, low=low, high=high, n=len(theirs))


def mean(runs: Sequence[Figure], *, resamples: int = 2000, seed: int = 0) -> Figure:
    """The mean of one figure of several runs on the same prompts, with a 95 % interval that draws the prompts again,
    and the runs too where there are several (a two-stage bootstrap: Davison & Hinkley 1997, §3.8).

    Returns:
        the mean over the prompts that every run measured; without prompts the mean of the values, without an
        interval; no value where a run has none.
    """
    missing = next((run for run in runs if run.value is None), None)
    if missing is not None:
        return replace(missing, pairs=(), shape=None)
    about = replace(runs[0], low=None, high=None, pairs=(), floors=(), shape=None, reason="")
    both = _shared_prompts(runs)
    if both is None or not both.any():
        value = float(np.mean([run.value for run in runs]))
        own = runs[0] if len(runs) == 1 else replace(about, reason="not measured on the same prompts")
        return replace(own, value=value, pairs=(), floors=(), shape=None)
    value, draws = _mean_draws(runs, both, _picks(int(both.sum()), resamples, seed), seed)
    low, high = _ends(draws)
    return replace(about, value=value, low=low, high=high, n=int(both.sum()))


def mean_difference(
    ours: Sequence[Figure],
    theirs: Sequence[Figure],
    *,
    paired_runs: bool,
    resamples: int = 2000,
    seed: int = 0,
) -> Figure:
    """mean(ours) - mean(theirs) with a paired 95 % interval: the same prompts are drawn on both sides, and with
    `paired_runs` (one seed each, in the same order) the same runs.

    Returns:
        the difference over the prompts that every run measured, or why there is none.
    """
    runs = [*ours, *theirs]
    about = replace(runs[0], value=None, low=None, high=None, n=None, pairs=(), floors=(), shape=None)
    missing = next((run for run in runs if run.value is None), None)
    both = _shared_prompts(runs)
    if missing is not None or both is None or not both.any():
        return replace(about, reason=missing.reason if missing else "not measured on the same prompts")
    picks = _picks(int(both.sum()), resamples, seed)
    our_value, our_draws = _mean_draws(ours, both, picks, seed)
    their_value, their_draws = _mean_draws(theirs, both, picks, seed if paired_runs else seed + 1)
    low, high = _ends(our_draws - their_draws)
    return replace(about, value=our_value - their_value, low=low, high=high, n=int(both.sum()), reason="")


def _shared_prompts(runs: Sequence[Figure]) -> np.ndarray | None:
    """Which prompts every run measured, [n]; None where the runs did not measure the same ones."""
    if not runs[0].pairs or len({len(run.pairs) for run in runs}) > 1:
        return None
    return np.logical_and.reduce([np.asarray(run.pairs)[:, 1] > 0 for run in runs])


def _mean_draws(
    runs: Sequence[Figure], used: np.ndarray, picks: np.ndarray, seed: int
) -> tuple[float, np.ndarray]:
    """The mean over runs, and the same of each resample, [resamples]."""
    values, draws = [], []
    for run in runs:
        pairs, shape = np.asarray(run.pairs)[used], run.shape or (lambda ratios: ratios)
        top, bottom = pairs.sum(0)
        values.append(float(shape(np.asarray(top / bottom))))
        drawn = pairs[picks].sum(1)
        draws.append(shape(drawn[:, 0] / drawn[:, 1]))
    resamples = len(picks)
    chosen = np.random.default_rng([seed, 1]).integers(len(runs), size=(len(runs), resamples))
    return float(np.mean(values)), np.stack(draws)[chosen, np.arange(resamples)].mean(0)


def _picks(n: int, resamples: int, seed: int) -> np.ndarray:
    """Which of the n prompts each resample draws, [resamples, n]."""
    return np.random.default_rng(seed).integers(n, size=(resamples, n))


def _times(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each of the n prompts, [resamples, n]: those that `_picks` draws."""
    return np.stack([np.bincount(picks, minlength=n) for picks in _picks(n, resamples, seed)]).astype(float)


def _ends(draws: np.ndarray) -> list[float]:
    """The 95 % percentile interval of resampled values."""
    return np.quantile(draws, [0.025, 0.975]).tolist()
