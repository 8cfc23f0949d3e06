"""Costs of requests: what is known is compared, what is not is said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from potstill.generate.price import Price
from potstill.recipe.task import CostsSpec
from potstill.report import money

PRICE = Price(2.0, 10.0)  # a request of 1,000 + 100 tokens costs 0.003
MACHINES = CostsSpec(serving_hour=3.6, training_hour=36.0)


def outcome(
    costs: CostsSpec = MACHINES, price: Price | None = PRICE, n: int = 500, spent: float = 0.0
) -> Any:
    per_request = {"n": n, "tokens_in": 1000.0, "tokens_out": 100.0, "cached": 0.0} if n else {"n": 0}
    asked = {"per_request": per_request, "spent": {"money": spent}, "seconds": 9.0}
    artifacts = {
        "generate": SimpleNamespace(facts=asked),
        "finetune": SimpleNamespace(facts={"seconds": 100.0}),
    }
    state = SimpleNamespace(artifacts=artifacts, trained=("finetune",))
    return SimpleNamespace(
        state=state, teacher=SimpleNamespace(price=price), recipe=SimpleNamespace(costs=costs)
    )


WRITING = {"writing": {"after": {"seconds": 10.0, "answers": 20}}}  # 0.5 s a request, so 0.0005


def block(evaluation: Any = WRITING, **changes: Any) -> dict[str, Any]:
    return money.money(outcome(**changes), evaluation)["money"]


def test_the_break_even_is_answers_and_training_over_what_a_request_saves() -> None:
    made = block()
    assert made["teacher"]["per_1000_requests"] == pytest.approx(3.0)
    assert made["student"]["per_1000_requests"] == pytest.approx(0.5)
    assert made["spent"] | {"training_hours": 0} == {
        "answers": pytest.approx(1.5),
        "training": pytest.approx(1.0),
        "training_hours": 0,
    }
    assert made["break_even_requests"] == 1000
    assert "paid for itself after 1,000 requests" in money.headline(made)
    # What was sent for the run and never answered was paid for too.
    assert block(spent=4.0)["break_even_requests"] == 2000


def test_answers_that_were_bought_for_less_count_with_what_was_paid() -> None:
    """Half of the price for 400 answers from batch files; of the other 100 nobody knows, so at the price of today."""
    made = outcome()
    made.state.artifacts["generate"].facts["per_request"] |= {"priced": 400, "paid": 400 * 0.0015}
    spent = money.money(made, WRITING)["money"]["spent"]
    assert spent["answers"] == pytest.approx(400 * 0.0015 + 100 * 0.003)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"price": None}, money.NO_PRICE),
        ({"n": 0}, money.NO_USAGE),
        ({"costs": CostsSpec()}, money.NO_SERVING),
        ({"evaluation": {}}, money.NO_SPEED),
        ({"costs": CostsSpec(serving_hour=3.6)}, "the answers alone are paid back after 600 requests"),
        (
            {"costs": CostsSpec(serving_hour=36.0, training_hour=1)},
            "never: a request costs the student no less",
        ),
        ({"costs": CostsSpec(serving_hour=1, currency="EUR")}, "the teacher is paid in USD, machines in EUR"),
    ],
)
def test_what_is_unknown_has_no_number_and_says_why(changes: dict[str, Any], reason: str) -> None:
    made = block(**changes)
    assert made["break_even_requests"] is None
    assert reason in made["break_even_requests_reason"]
    shown = [cell for row in money.rows(made) for cell in row]
    assert any(reason in cell for cell in shown)
    assert not {"0 USD", "0.00 USD"} & set(shown)


def test_a_price_of_nothing_is_a_price() -> None:
    made = block(price=Price(0.0, 0.0))
    assert made["teacher"]["per_1000_requests"] == 0.0
    assert next(money.rows(made))[1] == "0 USD"


def test_small_amounts_keep_their_digits() -> None:
    assert money.written(0.0001234, "USD") == "0.00012 USD"
    assert money.written(1234.5, "USD") == "1,234.50 USD"


def test_a_teacher_whose_weights_are_here_has_no_bill() -> None:
    made = outcome()
    made.state.artifacts["generate"].facts = {"seconds": 1.0}
    assert money.money(made, WRITING) == {"money": None, "money_reason": money.LOCAL}
