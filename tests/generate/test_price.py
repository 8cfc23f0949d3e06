"""What requests cost, and the budget that nothing exceeds."""

from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.asking import request
from potstill.errors import BudgetSpent
from potstill.generate.asks import asks_of
from potstill.generate.entries import Spent
from potstill.generate.price import Budget, Most, Price


def test_a_price_is_that_of_a_million_tokens() -> None:
    assert Price(2.0, 8.0).cost(500_000, 250_000) == pytest.approx(3.0)
    assert Price(2.0, 8.0, 0.5).cost(500_000, 0, 400_000) == pytest.approx(0.4)
    assert Price(2.0, 8.0).cost(500_000, 0, 400_000) == pytest.approx(
        1.0
    )  # no price of cached tokens is stated
    assert Price(2.0, 8.0, 0.5).cost(100, 0, 400) == pytest.approx(0.00005)  # more cached than there are


@given(
    most=st.floats(0.01, 10.0),
    steps=st.lists(st.tuples(st.floats(0.001, 1.0), st.floats(0.0, 1.0), st.booleans()), max_size=60),
)
def test_what_is_spent_stays_within_the_budget_whatever_is_used(most, steps) -> None:
    """Each step: what may be needed, the share of it that is used, and whether anybody states that."""
    budget, billed = Budget(Most(money=most), Spent()), 0.0
    for reserved, share, stated in steps:
        try:
            budget.reserve(1, reserved)
        except BudgetSpent:
            break
        billed += reserved * share
        budget.settle(1, reserved, 1 if stated else None, reserved * share if stated else None)
    assert billed <= most * (1 + 1e-9)


@pytest.mark.parametrize(
    ("spent", "most", "costs", "words"),
    [
        (0.0, 1e-6, 1.994e-4, "0 of 0.000001 are spent, and the next request may cost 0.0001994"),
        (19.5, 20.0, 0.75, "19.5 of 20 are spent, and the next request may cost 0.75"),
        (1234567.0, 1234567.8, 2.0, "1234567 of 1234567.8 are spent, and the next request may cost 2"),
    ],
)
def test_a_budget_that_does_not_reach_is_said_in_plain_sums(spent, most, costs, words) -> None:
    """The first request too: then nothing is spent yet."""
    budget = Budget(Most(money=most), Spent(money=spent))
    with pytest.raises(BudgetSpent) as caught:
        budget.reserve(10, costs)
    assert str(caught.value).startswith(f"the budget reaches no further: {words} (budget_money). Raise it")


def test_a_budget_whose_reservations_came_back_is_as_if_nothing_was_spent() -> None:
    """Sums of tenths do not cancel to the last bit, and may end below zero."""
    for amounts in itertools.permutations((0.1, 0.7, 0.3)):
        budget = Budget(Most(money=2.0), Spent())
        for money in amounts:
            assert budget.reserve(10, money)
        for money in amounts:
            budget.back(10, money)
        with pytest.raises(BudgetSpent, match=r"further: 0 of 2 are spent, and the next request may cost 3"):
            budget.reserve(10, 3.0)


def test_a_request_waits_for_what_others_may_give_back() -> None:
    budget = Budget(Most(money=1.0), Spent())
    assert budget.reserve(1, 0.8)
    admitted: list[bool] = []
    second = threading.Thread(target=lambda: admitted.append(budget.reserve(1, 0.8)))
    second.start()
    assert admitted == []
    budget.settle(1, 0.8, 1, 0.1)
    second.join(10)
    assert admitted == [True]


def test_nobody_waits_for_a_budget_once_all_stop() -> None:
    budget = Budget(Most(requests=1), Spent())
    budget.reserve(1, None)
    waiting = threading.Thread(target=lambda: budget.reserve(1, None))
    waiting.start()
    budget.stop()
    waiting.join(10)
    assert not waiting.is_alive()


def test_what_was_not_sent_is_given_back() -> None:
    budget = Budget(Most(requests=1, tokens=10, money=1.0), Spent())
    budget.reserve(10, 1.0)
    budget.back(10, 1.0)
    assert budget.reserve(10, 1.0)


@given(text=st.text(min_size=1, max_size=200).filter(lambda t: t.isprintable()))
def test_a_prompt_never_has_more_tokens_than_are_reserved_for_it(text) -> None:
    """No tokenizer makes more tokens than there are bytes."""
    from pathlib import Path

    (ask,) = asks_of(request("http://127.0.0.1:9/v1", Path(), [text]))
    assert ask.bound >= len(text.encode())
