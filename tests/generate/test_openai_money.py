"""What requests cost, where the price or the usage is not stated as usual."""

from __future__ import annotations

import sqlite3

import pytest

from builders.asking import ask
from builders.endpoint import answer, serving
from potstill.errors import BudgetSpent, RecipeError
from potstill.generate.journal import Journal
from potstill.generate.price import Price

TEN = [f"p{i}" for i in range(10)]


def rows(place, columns: str) -> list[tuple]:
    db = sqlite3.connect(place / "journal.sqlite")
    try:
        return db.execute(f"SELECT {columns} FROM attempts ORDER BY id").fetchall()
    finally:
        db.close()


def test_a_budget_of_money_needs_a_price(tmp_path) -> None:
    with serving() as server:
        with pytest.raises(RecipeError, match=r"budget_money: is no limit without a price.*teacher\.price"):
            ask(server, tmp_path, TEN, {"budget_money": 1.0}, teacher={"price": None})
        assert server.sent == []


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10, "completion_tokens": 5}, None])
def test_a_price_that_is_stated_later_counts_what_was_sent_before(tmp_path, usage) -> None:
    with serving(answer(usage=usage)) as server:
        ask(server, tmp_path, TEN, teacher={"price": None})
        with pytest.raises(BudgetSpent, match="budget_money"):
            ask(server, tmp_path, [*TEN, "new"], {"budget_money": 0.0006})
        assert len(server.sent) == 10


def test_reasoning_that_only_the_total_counts_is_paid_for(tmp_path) -> None:
    usage = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 51}
    with serving(answer(usage=usage)) as server:
        ask(server, tmp_path, ["a"])
    assert rows(tmp_path, "tokens_in, tokens_out, cost") == [(32, 19, pytest.approx((32 + 190) / 1e6))]


def test_a_reply_of_another_payer_is_not_priced_by_this_run(tmp_path, monkeypatch) -> None:
    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "settle", lambda *_, **__: None)
            patch.setattr(Journal, "recover", lambda _: (0, []))
            ask(server, tmp_path, ["a"], {"missing": "skip"}, teacher={"price": Price(1000, 1000)})
        ask(server, tmp_path, ["z"], payer="other", teacher={"model": "small", "price": Price(0, 0)})
    first = rows(tmp_path, "state, cost, reserved_money > 0, tokens_in")[0]
    assert first == ("answered", None, 1, 10)
