"""Ids are drawn with the probabilities that temperature, top-k and top-p say."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from potstill.errors import RecipeError
from potstill.generate.sampling import NOT_FINITE, Sampling, choose, uniforms

VOCABULARY = 40
DRAWS = 20_000


def flat_logits(seed: int = 0) -> Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def counts(logits: Tensor, sampling: Sampling, seed: int = 0) -> Tensor:
    uniform = torch.from_numpy(uniforms(seed, (0,), 0, DRAWS))
    drawn = choose(logits.expand(DRAWS, -1), uniform, sampling)
    return torch.bincount(drawn, minlength=len(logits)).double()


def expected_probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The textbook: sort, cut to k, renormalise, cut to the smallest set of mass p, renormalise."""
    probs = (logits.double() / sampling.temperature).softmax(-1)
    order = probs.argsort(descending=True)
    if sampling.top_k:
        probs[order[sampling.top_k :]] = 0
        probs /= probs.sum()
    kept, mass = 0, 0.0
    while mass < sampling.top_p - 1e-12 and kept < len(order):
        mass += probs[order[kept]].item()
        kept += 1
    probs[order[kept:]] = 0
    return probs / probs.sum()


def assert_fits(observed: Tensor, probs: Tensor) -> None:
    """Chi-square over cells of at least 5 expected draws, the rarer ids pooled; 5 standard deviations."""
    assert observed[probs == 0].sum() == 0
    expected = probs * observed.sum()
    common = expected >= 5
    cells = [(observed[common], expected[common])]
    if expected[~common].sum() >= 5:
        cells.append((observed[~common].sum()[None], expected[~common].sum()[None]))
    seen, hoped = (torch.cat(side) for side in zip(*cells, strict=True))
    statistic = ((seen - hoped) ** 2 / hoped).sum().item()
    freedom = len(seen) - 1
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1),
        Sampling(1, temperature=0.5),
        Sampling(1, temperature=2.0),
        Sampling(1, top_k=5),
        Sampling(1, top_p=0.8),
        Sampling(1, temperature=1.5, top_p=0.6, top_k=12),
    ],
    ids=str,
)
def test_frequencies_match_the_distribution(sampling: Sampling) -> None:
    logits = flat_logits()
    assert_fits(counts(logits, sampling), expected_probabilities(logits, sampling))


def test_the_frequency_test_notices_a_wrong_temperature() -> None:
    logits = flat_logits()
    wrong = expected_probabilities(logits, Sampling(1, temperature=1.1))
    with pytest.raises(AssertionError):
        assert_fits(counts(logits, Sampling(1)), wrong)


def test_a_nucleus_of_thousands_of_ids_is_exact() -> None:
    """It is wider than the first part that is sorted."""
    logits = torch.arange(4000.0)[None] / 4000
    probs = logits.double().softmax(-1)[0]
    smallest = 3999 - int((probs.flip(0).cumsum(0) < 0.95).sum())
    assert smallest < 1000
    lowest = choose(logits, torch.tensor([0.0]), Sampling(1, top_p=0.95))
    assert abs(lowest.item() - smallest) <= 1
    almost_one = torch.tensor([1 - 2**-24])
    assert choose(logits, almost_one, Sampling(1, top_p=0.95)).item() == 3999


def test_top_p_always_keeps_the_first_choice() -> None:
    logits = flat_logits()
    observed = counts(logits, Sampling(1, top_p=1e-6))
    assert observed[logits.argmax()] == DRAWS


def test_greedy_takes_the_largest_whatever_the_random_number() -> None:
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(1))
    for number in (0.0, 0.999):
        drawn = choose(logits, torch.full((50,), number), Sampling(1, temperature=0))
        assert torch.equal(drawn, logits.argmax(-1))


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = 1e4 * flat_logits()[None]
    drawn = choose(logits, torch.tensor([0.5]), Sampling(1, temperature=1e-30))
    assert drawn.item() == logits.argmax()


@pytest.mark.parametrize("number", [0.0, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_unit_interval_draw_ids_that_have_a_probability(number: float) -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf, 0.5, -math.inf]])
    drawn = choose(logits, torch.tensor([number], dtype=torch.float32), Sampling(1))
    assert drawn.item() in (1, 2, 4)


def test_low_precision_logits_are_drawn_from_in_float32() -> None:
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    # A bfloat16 cumulative sum of 1/4096 stalls long before the end.
    drawn = choose(logits, torch.tensor([0.75]), Sampling(1))
    assert abs(drawn.item() - 3072) <= 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_reported_row_by_row(temperature: float, bad: float) -> None:
    logits = torch.zeros(2, 4)
    logits[1, 2] = bad
    drawn = choose(logits, torch.tensor([0.1, 0.1]), Sampling(1, temperature=temperature))
    assert drawn.tolist() == [0, NOT_FINITE]


def test_each_prompt_and_sample_has_its_own_numbers() -> None:
    rows = [uniforms(seed, ids, sample, 8) for seed in (0, 1) for ids in ((0,), (1,)) for sample in (0, 1)]
    assert len({row.tobytes() for row in rows}) == len(rows)
    assert all(((row >= 0) & (row < 1)).all() for row in rows)


def test_a_longer_limit_does_not_change_the_first_draws() -> None:
    for short, long in pairwise([4, 8, 33]):
        assert np.array_equal(uniforms(3, (5,), 7, short), uniforms(3, (5,), 7, long)[:short])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("top_k", -1),
    ],
)
def test_a_setting_out_of_range_is_named_with_a_way_out(name: str, value: float) -> None:
    with pytest.raises(RecipeError) as caught:
        Sampling(**({"max_new_tokens": 4} | {name: value}))  # type: ignore[arg-type]
    assert caught.value.path == name
    assert str(value) in caught.value.message
    assert caught.value.fix
