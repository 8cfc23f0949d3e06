"""Every fault that an endpoint can play: what passes is tried again, what does not stops at once."""

from __future__ import annotations

import json

import pytest

from builders.asking import HUNDRED, ask, attempts, once, texts
from builders.endpoint import DRIP, DRIP_AND_RESET, HANG_UP, RESET, Act, Turned, answer, error, serving
from potstill.errors import ProviderError, RecipeError


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
    assert attempts(tmp_path, "state, reason, tokens_in") == [
        ("failed", "no reply in time", None),
        ("answered", None, 10),
    ]


def test_a_slow_drip_that_ends_in_a_reset_is_no_answer_and_nothing_of_it_is_kept(tmp_path) -> None:
    """Half of a good reply came in: it is neither read nor counted as one."""
    with serving(once(DRIP_AND_RESET)) as server:
        assert texts(ask(server, tmp_path, ["a"])) == ["so a"]
    (failed, answered) = attempts(tmp_path, "state, reason, tokens_in, reply")
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


def test_an_unreachable_server_costs_nothing(tmp_path) -> None:
    seen = []
    with serving() as server:
        url = server.url
    with pytest.raises(ProviderError, match="the server cannot be reached"):
        ask(url, tmp_path, ["a"], {"attempts": 2}, on_progress=seen.append)
    assert (seen[-1].unknown, seen[-1].requests) == (0, 2)
