"""What requests cost: budgets, the bill and who agrees to it, also where price or usage are not stated as usual."""

from __future__ import annotations

import pytest

from builders.asking import HUNDRED, PROMPTS, Agreed, ask, attempts, texts
from builders.endpoint import answer, serving
from potstill.errors import BudgetSpent, DataError, RecipeError
from potstill.generate.journal import Journal
from potstill.generate.price import Price

TEN = [f"p{i}" for i in range(10)]


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
    assert attempts(tmp_path, "tokens_in, tokens_out, cost") == [(32, 19, pytest.approx((32 + 190) / 1e6))]


def test_a_reply_of_another_payer_is_not_priced_by_this_run(tmp_path, monkeypatch) -> None:
    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "settle", lambda *_, **__: None)
            patch.setattr(Journal, "recover", lambda _: (0, []))
            ask(server, tmp_path, ["a"], {"missing": "skip"}, teacher={"price": Price(1000, 1000)})
        ask(server, tmp_path, ["z"], payer="other", teacher={"model": "small", "price": Price(0, 0)})
    first = attempts(tmp_path, "state, cost, reserved_money > 0, tokens_in")[0]
    assert first == ("answered", None, 1, 10)


def test_a_budget_is_never_exceeded_and_the_rest_can_be_asked_later(tmp_path) -> None:
    with serving() as server:
        with pytest.raises(BudgetSpent, match=r"5 of 5 requests were sent \(budget_requests\)"):
            ask(server, tmp_path, PROMPTS, {"budget_requests": 5})
        assert len(server.sent) == 5
        with pytest.raises(BudgetSpent):  # it counts what an earlier process sent
            ask(server, tmp_path, PROMPTS, {"budget_requests": 5})
        assert len(server.sent) == 5
        assert len(texts(ask(server, tmp_path, PROMPTS, {"budget_requests": 12}))) == 12
        assert len(server.sent) == 12


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10, "completion_tokens": 5}, None])
def test_money_is_reserved_before_it_is_spent(tmp_path, usage) -> None:
    """Whatever is stated or not, what can have been billed stays below the budget."""
    price = Price(1.0, 1000.0)  # an answer of full length costs 0.02
    with serving(answer("fine", usage=usage)) as server:
        with pytest.raises(BudgetSpent, match="budget_money"):
            ask(
                server,
                tmp_path,
                [f"p{i}" for i in range(50)],
                {"budget_money": 0.1},
                teacher={"price": price},
            )
        each = 0.00501 if usage else 0.02
        assert len(server.sent) * each <= 0.1
        assert len(server.sent) >= 4


# W-25
def test_a_budget_of_tokens_works_where_the_price_is_unknown(tmp_path) -> None:
    seen = []
    with serving() as server:
        with pytest.raises(BudgetSpent, match="budget_tokens"):
            ask(
                server,
                tmp_path,
                PROMPTS,
                {"budget_tokens": 200},
                teacher={"price": None},
                on_progress=seen.append,
            )
        assert len(server.sent) * 15 <= 200
    assert seen[-1].money is None
    assert seen[-1].cost.startswith("price unknown")


def test_the_price_of_an_answer_counts_cached_tokens_apart(tmp_path) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 400}}
    with serving(answer("fine", usage=usage)) as server:
        ask(server, tmp_path, ["a"], teacher={"price": Price(10.0, 20.0, 1.0)})
    ((cost,),) = attempts(tmp_path, "cost")
    assert cost == pytest.approx((600 * 10 + 400 * 1 + 10 * 20) / 1e6)


def test_the_bill_is_told_after_sixteen_answers_and_agreed_to(tmp_path) -> None:
    told: list[str] = []
    asked = Agreed()
    price = Price(1000.0, 10_000.0)  # 0.06 an answer
    with serving() as server:
        at = lambda question: (asked(question), counts.append(len(server.sent)))  # noqa: E731
        counts: list[int] = []
        ask(server, tmp_path, HUNDRED, confirm=at, say=told.append, teacher={"price": price})
        assert counts == [16]
        assert asked.questions == ["ask for 84 more answers for about 6 USD"]
    text = "\n".join(told)
    assert '{"role": "user", "content": "p3"}' in text
    assert "16 of 16 answers can be used" in text
    assert "84 requests are left; spent 0.96 USD (160 + 80 tokens so far), projected 6 USD in all" in text
    assert "asked for big, answered by big-2026-01-01 (16)" in text


def test_nothing_more_is_sent_where_nobody_agrees_and_one_yes_holds_for_a_run(tmp_path) -> None:
    price = Price(1000.0, 10_000.0)
    with serving() as server:
        with pytest.raises(RecipeError):
            ask(server, tmp_path, HUNDRED, confirm=Agreed(RecipeError("no")), teacher={"price": price})
        assert len(server.sent) == 16
        with pytest.raises(BudgetSpent):
            ask(server, tmp_path, HUNDRED, {"budget_requests": 50}, teacher={"price": price})
        never = Agreed(RecipeError("asked twice"))
        assert len(ask(server, tmp_path, HUNDRED, confirm=never, teacher={"price": price})) == 100
        assert len(server.sent) == 100


# W-25
@pytest.mark.parametrize(
    ("teacher", "questions"),
    [
        ({"price": Price(0.0, 0.0), "key_env": "K"}, 0),
        ({"price": None}, 0),
        ({"price": None, "key_env": "K"}, 1),
        ({"price": Price(1.0, 10.0), "key_env": "K"}, 0),  # 0.006 in all, below confirm_above
    ],
)
def test_a_price_is_asked_for_where_it_is_high_or_a_key_pays_an_unknown_one(
    tmp_path, monkeypatch, teacher, questions
) -> None:
    monkeypatch.setenv("K", "secret")
    asked = Agreed()
    with serving() as server:
        ask(server, tmp_path, HUNDRED, confirm=asked, teacher=teacher)
    assert len(asked.questions) == questions


# W-14
def test_most_answers_unusable_stops_before_the_rest_is_paid_for(tmp_path) -> None:
    usage = {
        "prompt_tokens": 1,
        "completion_tokens": 20,
        "completion_tokens_details": {"reasoning_tokens": 20},
    }
    with serving(answer("", "length", usage=usage)) as server:
        with pytest.raises(
            DataError, match=r"16 of the first 16 answers cannot be used: 16 reasoning used up.*effort"
        ):
            ask(server, tmp_path, HUNDRED)
        assert len(server.sent) == 16
