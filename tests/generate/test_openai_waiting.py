"""How long an endpoint is waited for, and when it is given up."""

from __future__ import annotations

import os

import pytest

from builders.asking import HUNDRED, ask, once, texts
from builders.endpoint import Turned, answer, error, serving
from potstill.errors import ProviderError


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
