"""The engine of served teachers against a server that plays every fault on loopback."""

from __future__ import annotations

import json
import os
import sqlite3
import threading

import pytest

from builders.asking import Agreed, ask, request, texts
from builders.endpoint import DRIP, DRIP_AND_RESET, HANG_UP, RESET, Act, Turned, answer, error, serving
from potstill.errors import BudgetSpent, DataError, MachineError, ProviderError, RecipeError
from potstill.generate import openai
from potstill.generate.price import Price
from potstill.recipe import plugins

PROMPTS = [f"w{i}" for i in range(12)]
HUNDRED = [f"p{i}" for i in range(100)]


def once(fault: Act):
    """A script: this at a prompt's first request, then an answer."""
    return lambda sent, times: fault if times == 0 else answer(f"so {sent.prompt}")


def rows(place, columns: str = "*") -> list[tuple]:
    db = sqlite3.connect(place / "journal.sqlite")
    try:
        return db.execute(f"SELECT {columns} FROM attempts ORDER BY id").fetchall()
    finally:
        db.close()


def change(place, sql: str) -> None:
    """Put the journal into the state that a killed process leaves."""
    db = sqlite3.connect(place / "journal.sqlite")
    db.execute(sql)
    db.commit()
    db.close()


def test_every_prompt_is_asked_once_and_answered_in_its_place(tmp_path) -> None:
    with serving() as server:
        given = ask(server, tmp_path, PROMPTS)
        assert texts(given) == [f"so {prompt}" for prompt in PROMPTS]
        assert set(server.prompts.values()) == {1}
        body = server.sent[0].body
        assert body["model"] == "big"
        # Explicit, so that no default of the server has a say.
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 1.0, 20)
        assert "n" not in body


def test_what_is_answered_is_never_asked_again(tmp_path) -> None:
    with serving() as server:
        first = ask(server, tmp_path, PROMPTS)
        assert ask(server, tmp_path, PROMPTS) == first
        assert texts(ask(server, tmp_path, [*PROMPTS, "new"]))[-1] == "so new"
        assert len(server.sent) == 13


def test_other_rules_are_applied_to_stored_replies_without_a_request(tmp_path) -> None:
    """The raw replies are read again; the server may be gone."""
    with serving(answer("It is 4.")) as server:
        assert ask(server, tmp_path, ["a"])[0].reason == ""
        url = server.url
    (given,) = ask(url, tmp_path, ["a"], {"reasoning": "wrap"})
    assert given.reason == "no reasoning beside it"


@pytest.mark.parametrize("option", ["truncated", "refusals", "loops"])
def test_an_option_that_moved_says_where_it_is_now(option) -> None:
    (problem,) = plugins.check_options("generate", "openai", {option: "keep"}, "generate.engine")
    assert problem.path == f"generate.engine.openai.{option}"
    assert f"Write generate.filters: [{{{option}: {{action: " in problem.fix


@pytest.mark.parametrize(
    "fault",
    [
        HANG_UP,
        RESET,
        DRIP_AND_RESET,
        error(500),
        error(502),
        error(503),
        error(408),
        error(409),
        error(429),
        error(503, retry_after="7"),
        error(429, "rate_limit_exceeded", retry_after="3"),
        error(200, "server_error"),
        Act(body=b""),
        Act(body=b"<html>busy</html>"),
        Act(body=b'{"choices": ['),
        Act(body=b'{"choices": []}'),
        Act(body=b"[" * 5000),
        Act(body=b"\xff\xfe{}"),
        Act(body=json.dumps({"choices": [{}, {}]}).encode()),
        Act(body=b'{"choices": [{"message": {"content": 7}}]}'),
    ],
    ids=lambda act: f"{act.how} {act.status} {act.body[:12]!r}",
)
def test_a_fault_that_passes_costs_one_more_request_and_no_answer(tmp_path, fault) -> None:
    """Wire requests are counted: one layer tries again, not two."""
    with serving(once(fault)) as server:
        assert texts(ask(server, tmp_path, ["a", "b"])) == ["so a", "so b"]
        assert server.prompts == {"a": 2, "b": 2}


def test_a_reply_that_drips_in_for_ever_is_left_at_the_time_limit(tmp_path) -> None:
    clock = Turned()

    def script(sent, times):
        clock.time += 0 if times else 21
        return answer("fine") if times else DRIP

    with serving(script) as server:
        assert texts(ask(server, tmp_path, ["a"], {"timeout": 20.0}, clock=clock)) == ["fine"]
    assert rows(tmp_path, "state, reason, tokens_in") == [
        ("failed", "no reply in time", None),
        ("answered", None, 10),
    ]


def test_a_slow_drip_that_ends_in_a_reset_is_no_answer_and_nothing_of_it_is_kept(tmp_path) -> None:
    """Half of a good reply came in: it is neither read nor counted as one."""
    with serving(once(DRIP_AND_RESET)) as server:
        assert texts(ask(server, tmp_path, ["a"])) == ["so a"]
    (failed, answered) = rows(tmp_path, "state, reason, tokens_in, reply")
    assert failed[0] == "failed"
    assert failed[1].startswith("the connection broke")
    assert failed[2] is None
    assert b"never whole" not in (failed[3] or b"")
    assert answered[:3] == ("answered", None, 10)


# W-13
@pytest.mark.parametrize("fault", [RESET, DRIP_AND_RESET], ids=["at once", "behind half of the reply"])
def test_a_request_without_a_reply_stays_visible_at_unknown_cost(tmp_path, fault) -> None:
    """The server may bill what it finished after nobody waited any more."""
    seen = []
    with serving(once(fault)) as server:
        ask(server, tmp_path, ["a"], on_progress=seen.append)
    assert seen[-1].unknown == 1
    assert "1 requests whose usage nobody stated" in seen[-1].cost
    assert seen[-1].money == pytest.approx(0.00006)


# W-12
def test_a_failing_prompt_is_tried_so_many_times_and_asked_again_by_the_next_run(tmp_path) -> None:
    def script(sent, times):
        return error(500) if sent.prompt == "bad" and times < 5 else answer("fine")

    with serving(script) as server:
        with pytest.raises(ProviderError, match="1 of 2 requests have no answer: the server failed"):
            ask(server, tmp_path, ["good", "bad"], {"attempts": 3})
        assert server.prompts == {"good": 1, "bad": 3}
        given = ask(server, tmp_path, ["good", "bad"], {"attempts": 3})
        assert texts(given) == ["fine", "fine"]
        assert given[1].attempts == 6
        assert server.prompts == {"good": 1, "bad": 6}


def test_a_run_may_go_on_without_prompts_that_fail(tmp_path) -> None:
    with serving(lambda sent, times: error(500) if sent.prompt == "bad" else answer("fine")) as server:
        given = ask(server, tmp_path, ["good", "bad"], {"attempts": 2, "missing": "skip"})
    assert (given[1].reason, given[1].attempts) == ("the server failed (500: no)", 2)


# W-11, field case 79
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (error(401, "invalid_api_key"), "the key is refused: 401"),
        (error(403), "the key is refused: 403"),
        (error(404, "model_not_found"), "there is no such model or address: 404"),
        (error(402), "the quota is used up: 402"),
        (error(429, "insufficient_quota", retry_after="1"), "the quota is used up: 429"),
        (error(200, "insufficient_quota"), "the quota is used up: 200"),
    ],
)
def test_a_key_or_a_quota_stops_at_once_with_exit_code_5(tmp_path, act, words) -> None:
    """A used-up quota is a 429 too, and no amount of waiting helps."""
    with serving(act) as server:
        with pytest.raises(ProviderError, match=words) as caught:
            ask(server, tmp_path, HUNDRED, workers=2)
        assert caught.value.exit_code == 5
        assert len(server.sent) <= 2


# field case 79
@pytest.mark.parametrize("code", ["unsupported_parameter", "unsupported_value"])
def test_a_refused_field_stops_at_once_and_names_the_way_out(tmp_path, code) -> None:
    act = error(400, code, "'temperature' is not supported")
    with serving(act) as server, pytest.raises(RecipeError, match=r"'temperature'.*teacher\.omit"):
        ask(server, tmp_path, ["a"], workers=1)


# field case 79
def test_an_omitted_field_is_absent(tmp_path) -> None:
    with serving() as server:
        ask(
            server,
            tmp_path,
            ["a"],
            teacher={"omit": ("temperature", "top_p"), "limit_field": "max_completion_tokens"},
        )
        assert server.sent[0].body.keys() == {"model", "messages", "max_completion_tokens"}


# W-14, W-15, W-23
@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (answer(""), "empty answer"),
        (answer(None), "empty answer"),
        (answer("  \n"), "empty answer"),
        (answer("", "length", usage={"prompt_tokens": 1, "completion_tokens": 20,
                                     "completion_tokens_details": {"reasoning_tokens": 20}}), "reasoning used up"),
        (answer("", "stop", reasoning_content="Let me see"), "reasoning used up its tokens"),
        (answer(None, "content_filter"), "content filter"),
        (answer('{"citations": []}', "content_filter"), "content filter"),
        (answer(None, refusal="I will not"), "refusal"),
        (answer(None, "tool_calls", tool_calls=[{"id": "1"}]), "a tool call"),
        (answer("text", None), "does not say how it ended"),
        (answer("text", "odd"), "ended by odd"),
        (answer("text", "RECITATION"), "content filter"),
        (answer("a \ud83d b"), "half a character"),
        (answer("a \x00 b"), "NUL"),
        (error(400, "context_length_exceeded"), "longer than the teacher's context"),
        (error(400, "content_filter"), "content filter"),
        (error(400, "", "odd prompt"), "refused by the server"),
        (error(413), "refused by the server"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_rejected_with_its_reason_and_not_tried_again(tmp_path, act, reason) -> None:
    with serving(lambda sent, times: act if sent.prompt == "odd" else answer("fine")) as server:
        given = ask(server, tmp_path, ["odd", "even"], {"missing": "skip"})
        assert reason in given[0].reason
        assert (given[1].reason, given[1].text) == ("", "fine")
        assert server.prompts == {"odd": 1, "even": 1}


@pytest.mark.parametrize("finish", ["stop", "eos_token", "end_turn"])
def test_an_end_is_an_end_however_the_server_calls_it(tmp_path, finish) -> None:
    with serving(answer("fine", finish)) as server:
        (given,) = ask(server, tmp_path, ["a"])
    assert (given.finish, given.reason) == ("stop", "")


# W-23
@pytest.mark.parametrize(
    "text",
    ["\u2028 two \u2029 lines", "</script><b>", "long " * 200_000, "e\u0301 \U0001f9ea 漢字", "a\tb\nc"],
)
def test_a_text_comes_back_as_it_was_given(tmp_path, text) -> None:
    with serving(answer(text)) as server:
        (given,) = ask(server, tmp_path, ["a"])
    assert (given.text, given.reason) == (text, "")


@pytest.mark.parametrize("said", ["length", "MAX_TOKENS"])
def test_a_cut_off_answer_comes_back_with_its_finish_for_the_filters_to_judge(tmp_path, said) -> None:
    with serving(answer("half", said)) as server:
        (given,) = ask(server, tmp_path, ["a"])
    assert (given.text, given.finish, given.reason) == ("half", "length", "")


# W-02
def test_a_larger_limit_asks_only_for_what_was_cut_off(tmp_path) -> None:
    """Finished answers stay; they are none of the limit's business."""
    told: list[str] = []

    def script(sent, times):
        return (
            answer("long", "length")
            if sent.prompt == "w1" and sent.body["max_tokens"] == 20
            else answer("done")
        )

    with serving(script) as server:
        ask(server, tmp_path, PROMPTS)
        given = ask(server, tmp_path, PROMPTS, most=40, say=told.append)
        assert texts(given) == ["done"] * 12
        assert server.prompts["w1"] == 2
        assert len(server.sent) == 13
    assert any(
        "11 of them to the same request with another limit of tokens; 1 are asked for" in line
        for line in told
    )


def test_exact_reuse_asks_again_under_another_limit(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], {"reuse": "exact"}, most=40)
        assert len(server.sent) == 2


def test_an_answer_longer_than_the_limit_now_is_not_taken(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], most=4, teacher={})
        assert len(server.sent) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"teacher": {"model": "other"}},
        {"teacher": {"extra_body": {"response_format": {"type": "text"}}}},
        {"teacher": {"omit": ("top_p",)}},
    ],
)
def test_an_answer_belongs_to_its_model_and_its_request(tmp_path, change) -> None:
    with serving(answer('"fine"')) as server:
        ask(server, tmp_path, ["a"])
        ask(server, tmp_path, ["a"], **change)
        assert len(server.sent) == 2


def test_answers_of_another_endpoint_are_used_and_named(tmp_path) -> None:
    warned: list[str] = []
    with serving() as one, serving() as other:
        ask(one, tmp_path, ["a"])
        ask(other, tmp_path, ["a", "b"], warn=warned.append)
        assert other.prompts == {"b": 1}
    assert len(warned) == 1
    assert "1 of the answers in the journal were given" in warned[0]


# W-16, W-21
def test_each_sample_is_a_request_of_its_own_and_equal_ones_are_left_to_the_filters(tmp_path) -> None:
    with serving(answer("the same")) as server:
        given = ask(server, tmp_path, ["a"], samples=3)
        assert len(server.sent) == 3
    assert [(one.text, one.reason) for one in given] == [("the same", "")] * 3


# What the server ignores


def test_a_limit_of_tokens_that_the_server_ignores_is_an_error(tmp_path) -> None:
    act = answer("long", usage={"prompt_tokens": 1, "completion_tokens": 99})
    with (
        serving(act) as server,
        pytest.raises(RecipeError, match="max_tokens was 20, and an answer has 99 tokens"),
    ):
        ask(server, tmp_path, PROMPTS)
    assert rows(tmp_path, "state")[0] == ("answered",)  # it was paid for


def test_logprobs_that_the_server_ignores_are_an_error(tmp_path) -> None:
    with serving() as server, pytest.raises(RecipeError, match="an answer has none"):
        ask(server, tmp_path, PROMPTS, teacher={"extra_body": {"logprobs": True}})


def test_a_seed_that_the_server_ignores_is_an_error_before_the_rest_is_asked(tmp_path) -> None:
    with serving(lambda sent, times: answer(f"so {times}")) as server:
        with pytest.raises(RecipeError, match="ignores a field: seed"):
            ask(server, tmp_path, [f"p{i}" for i in range(40)], teacher={"send_seed": True})
        assert len(server.sent) == 17


def test_a_seed_that_counts_is_sent_with_every_sample(tmp_path) -> None:
    with serving(lambda sent, times: answer(f"so {sent.body['seed']}")) as server:
        given = ask(server, tmp_path, PROMPTS, samples=2, teacher={"send_seed": True})
        assert len({sent.body["seed"] for sent in server.sent}) == 2
    assert not any(one.reason for one in given)


def test_a_response_format_that_the_server_ignores_is_an_error_after_the_first_answers(tmp_path) -> None:
    with serving() as server:
        with pytest.raises(DataError, match="16 not the JSON that was asked for"):
            ask(
                server,
                tmp_path,
                [f"p{i}" for i in range(40)],
                teacher={"extra_body": {"response_format": {}}},
            )
        assert len(server.sent) == 16


def test_a_choice_more_than_asked_for_is_no_answer(tmp_path) -> None:
    two = json.dumps({"choices": [{"message": {"content": "a"}}] * 2}).encode()
    with serving(Act(body=two)) as server, pytest.raises(ProviderError, match="holds 2 choices"):
        ask(server, tmp_path, ["a"], {"attempts": 2})


def test_top_k_is_refused_where_nobody_says_that_the_server_knows_it(tmp_path) -> None:
    from potstill.generate.sampling import Sampling

    with pytest.raises(RecipeError, match="no field of the OpenAI protocol"):
        ask("http://127.0.0.1:9/v1", tmp_path, ["a"], sampling=Sampling(4, top_k=5))


# Reasoning


# field case 41
def test_reasoning_in_its_own_field_is_dropped_or_wrapped_as_the_recipe_says(tmp_path) -> None:
    def script(sent, times):
        return answer("4", reasoning_content="2+2") if sent.prompt == "a" else answer("5")

    with serving(script) as server:
        assert texts(ask(server, tmp_path, ["a", "b"])) == ["4", "5"]
        given = ask(server, tmp_path, ["a", "b"], {"reasoning": "wrap"})
        assert len(server.sent) == 2
    assert given[0].text == "<think>\n2+2\n</think>\n\n4"
    assert given[1].reason == "no reasoning beside it"


# Completions


def test_completions_sends_the_text_of_one_turn(tmp_path) -> None:
    body = {
        "choices": [{"text": " there", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    with serving(Act(body=json.dumps(body).encode())) as server:
        assert texts(ask(server, tmp_path, ["Hello"], teacher={"api": "completions"})) == [" there"]
        assert server.sent[0].path == "/v1/completions"
        assert server.sent[0].body["prompt"] == "Hello"


def test_completions_refuses_a_conversation(tmp_path) -> None:
    from potstill.generate.served import Asked

    turns = ({"role": "system", "content": "x"}, {"role": "user", "content": "y"})
    made = request(
        "http://127.0.0.1:9/v1", tmp_path, [], teacher={"api": "completions"}, asked=[Asked(turns, 3, (0,))]
    )
    with pytest.raises(DataError, match="2 turns"):
        list(openai.write(made))


# Waiting


# W-09, W-10, field case 79
@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry_after": "12"}, 12, 12),
        ({"retry_after_ms": "1500"}, 1.5, 1.5),
        ({"retry_after": "300"}, 300, 300),
        ({"retry_after": "0"}, 0, 0),
        ({"retry_after": "-5"}, 0.4, 60),
        ({"retry_after": "soon"}, 0.4, 60),
        ({"retry_after": "Sun, 09 Sep 2001 01:47:40 GMT"}, 60, 60),  # the clock stands at 01:46:40
        ({"retry_after": "Sat, 08 Sep 2001 01:46:40 GMT"}, 0, 0),
        ({}, 0.4, 60),
    ],
)
def test_the_endpoint_is_left_alone_for_as_long_as_it_says(tmp_path, headers, least, most) -> None:
    clock = Turned()
    with serving(once(error(429, **headers))) as server:
        assert texts(ask(server, tmp_path, ["a"], clock=clock)) == ["so a"]
    assert least <= clock.time - 1e9 <= most


# W-09
def test_a_busy_endpoint_costs_no_attempt_until_patience_ends(tmp_path) -> None:
    with serving(lambda sent, times: error(429) if times < 12 else answer("fine")) as server:
        assert texts(ask(server, tmp_path, ["a"], {"attempts": 2})) == ["fine"]
    with serving(error(429)) as server:
        with pytest.raises(ProviderError, match="has refused everything for"):
            ask(server, tmp_path, ["b"], {"patience": 600.0})
        assert len(server.sent) < 40


def test_a_wait_longer_than_patience_is_not_waited_for(tmp_path) -> None:
    clock = Turned()
    with (
        serving(error(429, retry_after="7200")) as server,
        pytest.raises(ProviderError, match="asks to wait 7200 s"),
    ):
        ask(server, tmp_path, ["a"], clock=clock)
    assert clock.waits == []


def test_no_more_requests_are_in_flight_than_workers(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, [f"p{i}" for i in range(60)], workers=3)
        assert server.most_flying <= 3


# W-18
def test_open_files_do_not_grow_with_the_prompts(tmp_path) -> None:
    counts = []
    with serving(
        lambda sent, times: counts.append(len(os.listdir("/proc/self/fd"))) or answer("fine")
    ) as server:
        before = len(os.listdir("/proc/self/fd"))
        ask(server, tmp_path, [f"p{i}" for i in range(80)], workers=4)
    assert max(counts) <= before + 4 * 2 + 12  # both ends of four connections, the journal and its log


# W-07
def test_an_endpoint_that_is_down_trips_the_breaker_which_says_its_window(tmp_path) -> None:
    with serving(lambda sent, times: error(500) if len(server.sent) > 20 else answer("fine")) as server:
        with pytest.raises(ProviderError, match=r"\d+ of the last \d+ requests .* half of the last 50"):
            ask(server, tmp_path, [f"p{i}" for i in range(200)], {"attempts": 1})
        assert len(server.sent) < 60


def test_an_endpoint_that_answers_none_of_the_first_is_asked_no_more(tmp_path) -> None:
    with serving(error(500)) as server:
        with pytest.raises(ProviderError, match="16 of 100 requests have no answer"):
            ask(server, tmp_path, HUNDRED, {"attempts": 1, "missing": "skip"})
        assert len(server.sent) == 16


# W-07
def test_rows_that_failed_before_are_not_judged_by_these_alone(tmp_path) -> None:
    """21 of 100 failed; the next run asks these alone, and all fail again: 21 of 71 is no reason to give up."""
    bad = {f"p{i}" for i in range(21)}
    with serving(lambda sent, times: error(500) if sent.prompt in bad else answer("fine")) as server:
        for _ in range(2):
            with pytest.raises(ProviderError, match="21 of 100 requests have no answer"):
                ask(server, tmp_path, [*HUNDRED[21:], *HUNDRED[:21]], {"attempts": 1})


# Money


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
    ((cost,),) = rows(tmp_path, "cost")
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


# Interruption


def test_a_stop_sends_nothing_more_and_gives_what_is_there(tmp_path) -> None:
    stop = threading.Event()

    def script(sent, times):
        if len(server.sent) == 20:
            stop.set()
        return answer("fine")

    with serving(script) as server:
        given = ask(server, tmp_path, [f"p{i}" for i in range(90)], should_stop=stop.is_set, workers=2)
        there = [one for one in given if not one.reason]
        assert len(there) == len(server.sent) < 90
        assert {one.reason for one in given} == {"", "not asked"}
        assert len(ask(server, tmp_path, [f"p{i}" for i in range(90)], workers=2)) == 90
        assert set(server.prompts.values()) == {1}


def test_a_stop_ends_a_long_wait(tmp_path) -> None:
    """Workers that wait for a busy endpoint wake up; the clock here is the real one."""
    from potstill.generate.served import Clock

    stop = threading.Event()
    with serving(lambda sent, times: stop.set() or error(429, retry_after="600")) as server:
        given = ask(server, tmp_path, ["a"], should_stop=stop.is_set, clock=Clock())
    assert given[0].reason == "too many requests (429: no)"


def test_a_request_that_a_killed_process_sent_is_unknown_and_asked_again(tmp_path) -> None:
    told: list[str] = []
    with serving() as server:
        ask(server, tmp_path, ["a", "b"])
        change(
            tmp_path,
            "UPDATE attempts SET state = 'sent', reply = NULL, tokens_in = NULL, cost = NULL WHERE id = 1",
        )
        ask(server, tmp_path, ["a", "b"], say=told.append)
        assert len(server.sent) == 3
    assert "1 requests of a process that was killed have no reply" in told[0]
    assert [state for (state,) in rows(tmp_path, "state")] == ["unknown", "answered", "answered"]


def test_a_reply_that_was_kept_and_not_read_is_read_and_not_bought_again(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, ["a", "b"])
        change(
            tmp_path,
            "UPDATE attempts SET state = 'received', finish = NULL, tokens_in = NULL, cost = NULL WHERE id = 1",
        )
        assert texts(ask(server, tmp_path, ["a", "b"])) == ["so a", "so b"]
        assert len(server.sent) == 2


def test_two_runs_at_once_buy_nothing_twice(tmp_path) -> None:
    results: list[list[str]] = []
    with serving() as server:
        threads = [
            threading.Thread(target=lambda: results.append(texts(ask(server, tmp_path, PROMPTS))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [[f"so {prompt}" for prompt in PROMPTS]] * 3
        assert len(server.sent) == 12


def test_a_damaged_journal_is_named_and_left_alone(tmp_path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, and long enough to be read as one" * 100)
    before = (tmp_path / "journal.sqlite").read_bytes()
    with pytest.raises(MachineError, match=r"journal\.sqlite cannot be used.*keep a copy"):
        ask("http://127.0.0.1:9/v1", tmp_path, ["a"])
    assert (tmp_path / "journal.sqlite").read_bytes() == before


def test_an_unreachable_server_costs_nothing(tmp_path) -> None:
    seen = []
    with serving() as server:
        url = server.url
    with pytest.raises(ProviderError, match="the server cannot be reached"):
        ask(url, tmp_path, ["a"], {"attempts": 2}, on_progress=seen.append)
    assert (seen[-1].unknown, seen[-1].requests) == (0, 2)


@pytest.mark.parametrize(
    "option", ["attempts", "timeout", "requests_per_minute", "tokens_per_minute", "patience"]
)
def test_a_pace_of_nothing_is_refused(tmp_path, option) -> None:
    with pytest.raises(RecipeError, match=rf"openai\.{option}: cannot be 0"):
        [*openai.write(request("http://127.0.0.1:9/v1", tmp_path, ["a"]), **{option: 0})]


def test_a_redirect_is_not_followed(tmp_path) -> None:
    """Headers of a gateway are for that gateway."""
    with serving() as other:
        act = Act(307, b"", {"location": f"{other.url}/chat/completions"})
        with serving(act) as server, pytest.raises(ProviderError, match="answers with something else: 307"):
            ask(server, tmp_path, ["a"])
        assert other.sent == []


def test_a_short_key_is_no_secret_that_would_be_cut_out_of_answers(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("K", "EMPTY")
    with serving(answer("the set is EMPTY")) as server:
        assert texts(ask(server, tmp_path, ["a"], teacher={"key_env": "K"})) == ["the set is EMPTY"]


def test_what_the_environment_says_for_another_provider_is_not_sent(tmp_path, monkeypatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "of-another-provider")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with serving() as server:
        ask(server, tmp_path, ["a"])
        assert "of-another-provider" not in str(server.sent[0].headers)
        assert "authorization" not in server.sent[0].headers


# Cut-off answers once more


def longer(sent, times):
    """Prompts that need more than 20 tokens; w2 needs more than 60."""
    needs = {"w1": 40, "w2": 99}.get(sent.prompt, 5)
    most = sent.body["max_tokens"]
    usage = {"prompt_tokens": 10, "completion_tokens": min(needs, most)}
    return answer(f"{sent.prompt} {min(needs, most)}", "stop" if needs <= most else "length", usage=usage)


# W-03
def test_an_answer_that_was_cut_off_is_asked_for_once_more_where_the_recipe_says_so(tmp_path) -> None:
    with serving(longer) as server:
        given = ask(server, tmp_path, PROMPTS, {"retry_truncated": 60})
        assert (given[1].text, given[1].finish, given[1].reason) == ("w1 40", "stop", "")
        assert (given[2].text, given[2].finish) == ("w2 60", "length")
        assert {prompt for prompt, count in server.prompts.items() if count > 1} == {"w1", "w2"}
        assert len(server.sent) == 14
        assert ask(server, tmp_path, PROMPTS, {"retry_truncated": 60})[2].text == "w2 60"
        assert len(server.sent) == 14
        # Without the option the first answers count.
        assert ask(server, tmp_path, PROMPTS, {})[1].text == "w1 20"
        assert len(server.sent) == 14


def test_the_second_request_is_within_the_budget_and_agreed_to(tmp_path) -> None:
    with serving(longer) as server:
        with pytest.raises(BudgetSpent, match="12 of 12 requests"):
            ask(server, tmp_path, PROMPTS, {"retry_truncated": 60, "budget_requests": 12})
        agreed = Agreed(RecipeError("no"))
        with pytest.raises(RecipeError, match="no"):
            ask(server, tmp_path, PROMPTS, {"retry_truncated": 60, "confirm_above": 0.0}, confirm=agreed)
        assert agreed.questions[0].startswith("ask for 2 more answers for about")
        assert len(server.sent) == 12


def test_a_second_limit_that_is_no_larger_is_refused(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"retry_truncated: is 20, and generate\.max_new_tokens is 20"):
        ask("http://127.0.0.1:9/v1", tmp_path, ["a"], {"retry_truncated": 20})
