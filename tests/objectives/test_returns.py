"""Returns, remaining lengths and weights of a mixture on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from potstill.objectives.returns import (
    log_weights,
    mean_and_deviation,
    moments,
    products,
    remaining,
    returns,
)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_reward_is_discounted_by_its_distance_from_the_token():
    """Field case 16: by absolute position the third would be 1.539."""
    got = returns(torch.ones(4), torch.zeros(4, dtype=torch.int64), 0.9)
    assert got.tolist() == pytest.approx([3.439, 2.71, 1.9, 1.0])


@pytest.mark.parametrize("discount", [0.9, 1.0])
def test_a_long_answer_has_finite_returns_also_by_its_length(discount):
    owners = torch.zeros(1200, dtype=torch.int64)
    got = returns(torch.ones(1200), owners, discount) / remaining(owners)
    assert got.isfinite().all()
    assert float(got[-1]) == 1.0


def test_a_discount_of_nothing_leaves_each_reward_alone():
    rewards = numbers(3, -1, 2)
    assert torch.equal(returns(rewards, torch.tensor([0, 0, 1]), 0.0), rewards)


def test_sequences_of_other_lengths_do_not_reach_into_each_other():
    """Field case 27: reward 1, no discount, divided by what remains, is 1 everywhere; alone as in company."""
    rewards, owners = torch.ones(6), torch.tensor([0, 0, 3, 3, 3, 3])
    assert remaining(owners).tolist() == [2, 1, 4, 3, 2, 1]
    assert (returns(rewards, owners, 1.0) / remaining(owners)).tolist() == [1.0] * 6
    assert returns(numbers(5, 7, 1, 1, 1, 1), owners, 1.0)[2:].tolist() == [4, 3, 2, 1]


def test_weights_of_a_mixture_are_the_student_by_the_mixture():
    q, p = numbers(0.5, 0.25), numbers(0.1, 0.75)
    got = log_weights(q.log(), p.log(), 0.2).exp()
    assert got.tolist() == pytest.approx([0.5 / 0.42, 0.25 / 0.35])
    assert log_weights(q.log(), p.log(), 0.0).tolist() == [0.0, 0.0]
    assert log_weights(q.log(), p.log(), 1.0).exp().tolist() == pytest.approx([5.0, 1 / 3])


def test_products_run_along_each_sequence_and_survive_a_weight_of_nothing():
    logs, owners = numbers(2, 3, 0, 5).log(), torch.tensor([0, 0, 0, 1])
    assert products(logs, owners).tolist() == pytest.approx([2, 6, 0, 5])
    assert products(logs, owners, before=True).tolist() == pytest.approx([1, 2, 6, 1])


def test_moments_of_parts_add_up_to_those_of_the_whole():
    values = numbers(1, 2, 4, 9)
    whole = mean_and_deviation(moments(values))
    assert mean_and_deviation(moments(values[:1]) + moments(values[1:])) == pytest.approx(whole)
    assert whole == pytest.approx((4.0, math.sqrt(float(values.var()) + 1e-8)))
    assert mean_and_deviation(moments(values[:0])) == (0.0, 1.0)


def test_no_token_has_no_return():
    nothing, owners = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert returns(nothing, owners, 0.9).shape == (0,)
    assert products(nothing, owners, before=True).shape == (0,)
