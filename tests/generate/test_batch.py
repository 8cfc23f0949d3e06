"""The engine of batch files against a provider that plays every fault on loopback."""

from __future__ import annotations

import json

import pytest

from builders.asking import PRICE, Agreed, attempts, request, texts
from builders.batch_provider import LOST, Provider, providing
from builders.endpoint import Act, answer, error
from potstill.errors import BudgetSpent, ProviderError, RecipeError
from potstill.generate import batch, batch_files, openai
from potstill.generate.wire import Wire

MANY = [f"p{i}" for i in range(40)]  # 16 of them are asked for one by one
EVERY = [f"so {prompt}" for prompt in MANY]


def ask(endpoint, place, prompts=MANY, options=None, **changes):
    made = request(endpoint, place, prompts, **changes)
    given = batch.write(made, **(options or {}))
    return sorted(given, key=lambda one: (one.index, one.sample))


def asked_once(provider, endpoint, prompts=MANY) -> bool:
    """Whether every prompt was answered once, in a batch or by itself."""
    return provider.answered + endpoint.prompts == dict.fromkeys(prompts, 1)


def test_the_first_are_asked_one_by_one_and_the_rest_in_files(tmp_path) -> None:
    said: list[str] = []
    with providing() as (provider, endpoint):
        given = ask(endpoint, tmp_path, options={"requests_per_batch": 10}, say=said.append)
        assert texts(given) == EVERY
        assert asked_once(provider, endpoint)
        assert len(endpoint.sent) == 16
        assert [len(b["metadata"]["potstill"]) for b in provider.batches.values()] == [33, 33, 33]
        sent = json.loads(provider.files["file-0"].splitlines()[0])
        assert sent["body"]["max_tokens"] == 20
        assert any("24 requests are left" in line for line in said)
        assert any("batch batch-0: completed, 10 of 10 answered" in line for line in said)
        calls = len(provider.calls)
        assert texts(ask(endpoint, tmp_path)) == EVERY  # from the journal
        assert (len(provider.calls), len(endpoint.sent)) == (calls, 16)
    # The files lie beside the journal as they came.
    assert len(list((tmp_path / "batches").glob("*.output.jsonl"))) == 3


def test_answers_of_a_batch_serve_single_requests_and_the_other_way_round(tmp_path) -> None:
    with providing() as (provider, endpoint):
        ask(endpoint, tmp_path)
        assert len(list(openai.write(request(endpoint, tmp_path, MANY)))) == 40
        assert asked_once(provider, endpoint)


def test_a_request_in_a_batch_costs_its_share_of_the_price(tmp_path) -> None:
    seen = []
    with providing() as (_, endpoint):
        ask(endpoint, tmp_path, options={"price_share": 0.5}, on_progress=seen.append)
    one = PRICE.cost(10, 5)
    assert seen[-1].money == pytest.approx(16 * one + 24 * one / 2)
    assert (seen[-1].done, seen[-1].unknown) == (40, 0)


def test_the_bill_counts_the_share_and_nothing_is_submitted_without_a_yes(tmp_path) -> None:
    agreed = Agreed(RecipeError("no"))
    with providing() as (provider, endpoint):
        with pytest.raises(RecipeError, match="no"):
            ask(
                endpoint,
                tmp_path,
                options={"price_share": 0.5, "confirm_above": 0.0},
                confirm=agreed,
            )
        assert provider.calls == []
    assert agreed.questions == [f"ask for 24 more answers for about {16 * 0.00006 + 24 * 0.00003:.4g} USD"]


@pytest.mark.parametrize("ends", [["expired"], ["cancelled", "expired"]])
def test_what_a_batch_did_not_answer_in_time_is_asked_again_and_costs_nothing(tmp_path, ends) -> None:
    with providing(Provider(ends=ends)) as (provider, endpoint):
        assert texts(ask(endpoint, tmp_path)) == EVERY
        # Of a batch that was cancelled all had been answered.
        assert asked_once(provider, endpoint)
    expired = attempts(tmp_path, "state, reason, cost")
    assert expired.count(("failed", "the batch ended before it was answered", 0.0)) in (0, 12)


def test_rows_that_are_missing_are_asked_again_and_may_have_been_billed(tmp_path) -> None:
    def shape(output, errors):
        return (output[1:] if len(output) > 1 else output), errors

    with providing(Provider(shape=shape)) as (provider, endpoint):
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert sorted(provider.answered.values())[-1] == 2
    lost = [row for row in attempts(tmp_path, "state, reason, cost, tokens_in") if row[0] == "failed"]
    assert lost == [("failed", "the batch's files have no row for it", None, None)]


def test_rows_with_errors_are_rejected_or_asked_again_as_single_requests_are(tmp_path) -> None:
    def script(sent, times):
        if sent.prompt == "p0":
            return error(400, "context_length_exceeded")
        return error(500) if sent.prompt == "p2" and times == 0 else answer(f"so {sent.prompt}")

    with providing(Provider(script)) as (provider, endpoint):
        given = ask(endpoint, tmp_path)
        assert given[0].reason == "longer than the teacher's context (400: no)"
        assert [one.text for one in given[1:]] == EVERY[1:]
        assert (provider.answered["p0"], provider.answered["p2"]) == (1, 2)


@pytest.mark.parametrize(
    ("act", "times", "reason"),
    [
        (error(400, "", "odd prompt"), 1, "refused by the server"),
        (Act(body=b'{"choices": []}'), 2, "a reply that cannot be read"),
    ],
)
def test_a_row_that_would_fail_again_is_not_put_into_every_batch(tmp_path, act, times, reason) -> None:
    with providing(Provider(lambda sent, _: act if sent.prompt == "p0" else answer("x" + sent.prompt))) as (
        provider,
        endpoint,
    ):
        given = ask(endpoint, tmp_path, options={"missing": "skip"})
        assert reason in given[0].reason
        assert provider.answered["p0"] == times


def test_a_request_that_fails_in_every_batch_is_named_and_asked_again_by_the_next_run(tmp_path) -> None:
    def script(sent, times):
        return error(500) if sent.prompt == "p0" and times < 2 else answer("x" + sent.prompt)

    with providing(Provider(script)) as (provider, endpoint):
        with pytest.raises(ProviderError, match="1 of 40 requests have no answer: the server failed"):
            ask(endpoint, tmp_path, options={"attempts": 2})
        assert texts(ask(endpoint, tmp_path))[0] == "xp0"
        assert provider.answered["p0"] == 3


@pytest.mark.parametrize(
    ("act", "words"),
    [(error(429, "insufficient_quota"), "the quota is used up"), (error(401), "the key is refused")],
)
def test_a_quota_or_a_key_in_a_row_stops_and_keeps_the_others(tmp_path, act, words) -> None:
    script = lambda sent, times: act if sent.prompt == "p0" and not times else answer("fine " + sent.prompt)  # noqa: E731
    with providing(Provider(script)) as (provider, endpoint):
        with pytest.raises(ProviderError, match=words) as caught:
            ask(endpoint, tmp_path)
        assert caught.value.exit_code == 5
        ask(endpoint, tmp_path)
        assert sum(provider.answered.values()) + len(endpoint.sent) == 41


# W-20: joined by custom_id


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (lambda output, errors: ([*output, output[0]], errors), "name 1 requests twice"),
        (
            lambda output, errors: (output, [{**output[0], "custom_id": "odd"}]),
            "name 1 requests that were not",
        ),
        (lambda output, errors: ([*output, {"odd": 1}], errors), "hold 1 lines that are no row"),
    ],
)
def test_rows_that_do_not_fit_are_an_error_and_cost_no_answer(tmp_path, shape, words) -> None:
    with providing(Provider(shape=shape)) as (provider, endpoint):
        with pytest.raises(ProviderError, match=words):
            ask(endpoint, tmp_path)
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert asked_once(provider, endpoint)


def test_of_two_rows_for_a_request_the_one_that_succeeded_counts() -> None:
    good = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": {"x": 1}}}).encode()
    bad = json.dumps({"custom_id": "a", "response": {"status_code": 500, "body": {}}}).encode()
    joined = batch_files.join([bad, good], {"a"})
    assert (joined.rows["a"].status, joined.twice) == (200, {"a"})


# W-19: files that are not known yet


def test_a_file_that_is_not_known_yet_is_waited_for(tmp_path) -> None:
    faults = {"POST /batches": [error(400, "invalid_request", "cannot find file file-0")] * 2}
    with providing(Provider(faults=faults)) as (provider, endpoint):
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert (len(provider.batches), provider.calls.count("POST /files")) == (1, 1)


def test_a_batch_whose_reply_was_lost_is_looked_up_and_not_created_twice(tmp_path) -> None:
    with providing(Provider(after={"POST /batches": [Act(), LOST]})) as (provider, endpoint):
        provider.after["POST /batches"].pop(0)
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert len(provider.batches) == 1
        assert asked_once(provider, endpoint)


@pytest.mark.parametrize("kind", ["POST /files", "GET /files", "POST /batches", "GET /batches"])
@pytest.mark.parametrize("act", [LOST, error(500), error(429, retry_after="7"), error(503)])
def test_a_call_that_fails_is_tried_again(tmp_path, kind, act) -> None:
    with providing(Provider(faults={kind: [act, act]})) as (provider, endpoint):
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert asked_once(provider, endpoint)
        assert len(provider.batches) == 1


@pytest.mark.parametrize(
    ("kind", "act", "words"),
    [
        ("POST /files", Act(body=b"{}"), "the endpoint takes no batches"),
        ("POST /files", Act(404), "there is no such model or address"),
        ("POST /batches", Act(404), "there is no such model or address"),
        ("POST /batches", error(403), "the key is refused"),
    ],
)
def test_an_endpoint_without_batches_says_so_and_its_requests_can_be_asked_one_by_one(
    tmp_path, kind, act, words
) -> None:
    with providing(Provider(faults={kind: [act]})) as (provider, endpoint):
        with pytest.raises(ProviderError, match=words):
            ask(endpoint, tmp_path)
        assert len(list(openai.write(request(endpoint, tmp_path, MANY)))) == 40
        assert asked_once(provider, endpoint)
    assert attempts(tmp_path, "cost")[16] == (0.0,)  # it never left


def test_a_batch_that_fails_is_an_error_unless_the_provider_is_full(tmp_path) -> None:
    full = [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]
    with providing(Provider(ends=["failed"], errors=full)) as (provider, endpoint):
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert asked_once(provider, endpoint)
        assert len(provider.batches) == 2
    bad = [{"code": "invalid_json_line", "message": "line 3"}]
    words = "batch batch-0 failed: invalid_json_line: line 3"
    with (
        providing(Provider(ends=["failed"], errors=bad)) as (_, endpoint),
        pytest.raises(ProviderError, match=words),
    ):
        ask(endpoint, tmp_path / "other")


# Kills, stops and budgets


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("before", [True, False])
def test_a_kill_around_any_call_loses_nothing_and_submits_nothing_twice(
    tmp_path, monkeypatch, before
) -> None:
    """Before a call: what comes after the last commit. After it: the reply is lost with the process."""
    call, point = Wire.call, 0
    while True:
        left = iter(range(point))

        def dying(wire, *args, left=left, **fields):
            last = next(left, None) is None
            if last and before:
                raise Killed
            reply = call(wire, *args, **fields)
            if last:
                raise Killed
            return reply

        place = tmp_path / str(point)
        with providing() as (provider, endpoint):
            options = {"requests_per_batch": 12}
            with monkeypatch.context() as patch:
                patch.setattr(Wire, "call", dying)
                try:
                    ask(endpoint, place, options=options)
                    break
                except Killed:
                    pass
            assert texts(ask(endpoint, place, options=options)) == EVERY
            assert asked_once(provider, endpoint), point
            assert len(provider.batches) == 2
        point += 1
    assert point > 8


def test_single_requests_do_not_buy_what_a_batch_holds(tmp_path, monkeypatch) -> None:
    with providing() as (provider, endpoint):
        with monkeypatch.context() as patch:
            patch.setattr(batch_files, "join", lambda *_: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                ask(endpoint, tmp_path)
        with pytest.raises(RecipeError, match="24 of the requests are in a batch at the provider"):
            list(openai.write(request(endpoint, tmp_path, MANY)))
        assert len(endpoint.sent) == 16
        assert texts(ask(endpoint, tmp_path)) == EVERY
        assert asked_once(provider, endpoint)


def test_a_stop_leaves_the_batch_at_the_provider_and_the_next_start_takes_it_in(tmp_path) -> None:
    said: list[str] = []
    with providing() as (provider, endpoint):
        given = ask(endpoint, tmp_path, say=said.append, should_stop=lambda: bool(provider.batches))
        assert sum(not one.reason for one in given) == 16
        assert any("1 batches go on at the provider" in line for line in said)
        assert texts(ask(endpoint, tmp_path, say=said.append)) == EVERY
        assert any("1 batches of an earlier start are taken in first" in line for line in said)
        assert asked_once(provider, endpoint)


def test_a_batch_holds_no_more_than_the_budget_allows(tmp_path) -> None:
    with providing() as (provider, endpoint):
        with pytest.raises(BudgetSpent, match="30 of 30 requests were sent"):
            ask(endpoint, tmp_path, options={"budget_requests": 30})
        assert (sum(provider.answered.values()), len(endpoint.sent)) == (14, 16)
        assert texts(ask(endpoint, tmp_path, options={"budget_requests": 40})) == EVERY
        assert asked_once(provider, endpoint)


def test_the_worst_case_of_a_file_is_reserved_and_what_it_did_not_use_is_spent_on_the_next(tmp_path) -> None:
    """40 requests use 600 tokens; each may take some hundred."""
    with providing() as (provider, endpoint):
        assert texts(ask(endpoint, tmp_path, options={"budget_tokens": 1500}, workers=1)) == EVERY
        assert len(provider.batches) >= 2
        assert asked_once(provider, endpoint)


@pytest.mark.parametrize("option", ["requests_per_batch", "batches_at_once", "poll_seconds", "price_share"])
def test_an_option_that_cannot_be_is_refused(tmp_path, option) -> None:
    with pytest.raises(RecipeError, match=f"generate.engine.batch.{option}: cannot be 0"):
        ask("http://127.0.0.1:9/v1", tmp_path, options={option: 0})
