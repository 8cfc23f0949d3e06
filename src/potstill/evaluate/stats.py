"""Intervals by resampling prompts, never tokens: tokens of one answer are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from potstill.types import Metric

Transform = Callable[[np.ndarray], np.ndarray]


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
    transform: Transform | None = None,
) -> Metric:
    """sum(numerators) / sum(denominators) with a 95 % percentile interval (Efron & Tibshirani 1993).

    Args:
        numerators, denominators: one pair a prompt; prompts with denominator 0 are left out.
        transform: applied to the ratio and to every resampled one (exp for a perplexity).

    Returns:
        the value, its interval and n, the number of prompts. Without a prompt all are nan and n is 0.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    used = bottom > 0
    top, bottom = top[used], bottom[used]
    n = len(top)
    if n == 0:
        return Metric(float("nan"), float("nan"), float("nan"), 0)
    picks = np.random.default_rng(seed).integers(n, size=(resamples, n))
    shape = transform or (lambda values: values)
    draws = shape(top[picks].sum(1) / bottom[picks].sum(1))
    low, high = np.quantile(draws, [0.025, 0.975])
    value = float(shape(np.asarray(top.sum() / bottom.sum())))
    pairs = tuple(zip(top.tolist(), bottom.tolist(), strict=True))
    return Metric(value, float(low), float(high), n, pairs)


def retained(teacher: Metric, student: Metric, *, resamples: int = 2000, seed: int = 0) -> Metric | str:
    """student / teacher of a higher-is-better metric, both resampled on the same prompts.

    Returns:
        the share kept, or a sentence why there is none: the teacher's own interval includes 0, it
        succeeded on fewer than 20 prompts, or the two were measured on different prompts.
    """
    if not teacher.n or teacher.low <= 0:
        return "the teacher's own interval includes 0"
    succeeded = sum(top > 0 for top, _ in teacher.per_prompt)
    if succeeded < 20:
        return f"the teacher scores above 0 on only {succeeded} prompts, and 20 are needed"
    if len(teacher.per_prompt) != len(student.per_prompt):
        return "teacher and student were measured on different prompts"
    theirs, ours = np.asarray(teacher.per_prompt), np.asarray(student.per_prompt)
    picks = np.random.default_rng(seed).integers(len(theirs), size=(resamples, len(theirs)))
    sums_t, sums_s = theirs[picks].sum(1), ours[picks].sum(1)
    draws = (sums_s[:, 0] / sums_s[:, 1]) / (sums_t[:, 0] / sums_t[:, 1])
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(student.value / teacher.value, float(low), float(high), len(theirs))
