"""When requests start: allowances, pauses, how many are in flight, and when to give up."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.endpoint import Turned
from potstill.errors import ProviderError
from potstill.generate.pace import LEAST, WINDOW, Breaker, Bucket, Pace, backoff


def pace(clock: Turned, workers: int = 8, requests: int | None = None, tokens: int | None = None) -> Pace:
    return Pace(workers, requests, tokens, 1800.0, clock, random.Random(0))


@given(per_minute=st.integers(10, 5000), count=st.integers(1, 400))
def test_no_minute_holds_more_requests_than_are_allowed(per_minute: int, count: int) -> None:
    clock = Turned()
    bucket, times = Bucket(per_minute, clock), []
    for _ in range(count):
        clock.time += bucket.delay(1) + 1e-9
        bucket.take(1)
        times.append(clock.time)
    for i, start in enumerate(times):
        assert sum(start <= t < start + 60 for t in times[i:]) <= per_minute + 1


def test_an_allowance_is_used_up_over_time() -> None:
    clock = Turned()
    bucket = Bucket(600, clock)
    start = clock.time
    for _ in range(6000):
        clock.time += bucket.delay(1)
        bucket.take(1)
    assert (clock.time - start) / 60 == pytest.approx(10, rel=0.15)


def test_a_request_larger_than_a_burst_waits_and_goes() -> None:
    clock = Turned()
    steady = pace(clock, tokens=1000)
    start = clock.time
    for _ in range(5):
        assert steady.admit(500) is not None
        steady.done(500, 500)
    assert 60 < clock.time - start < 300


def test_tokens_that_were_not_used_are_given_back() -> None:
    clock = Turned()
    steady = pace(clock, tokens=6000)
    for _ in range(50):
        steady.admit(600)
        steady.done(600, 6)
    assert sum(clock.waits) < 5  # 30,000 were reserved, 300 were used


# W-09
def test_the_number_in_flight_is_halved_once_for_all_that_were_in_flight_and_grows_back() -> None:
    clock = Turned()
    steady = pace(clock, workers=8)
    sent = [steady.admit(1) for _ in range(8)]
    clock.time += 1
    for at in sent:
        steady.refused(at or 0.0, 0.0)
        steady.done(1, None)
    assert steady.limit == 4
    for _ in range(9):
        steady.answered()
    assert 5 <= steady.limit <= 6
    for _ in range(100):
        steady.answered()
    assert steady.limit == 8


def test_a_pause_holds_for_every_worker() -> None:
    clock = Turned()
    steady = pace(clock)
    steady.refused(clock.time, 30.0)
    for _ in range(3):
        steady.admit(1)
    assert clock.waits == [30.0]


def test_no_more_are_admitted_than_are_allowed_in_flight() -> None:
    steady = pace(Turned(), workers=2)
    assert steady.admit(1) is not None
    assert steady.admit(1) is not None
    admitted = threading.Event()
    third = threading.Thread(target=lambda: steady.admit(1) and admitted.set())
    third.start()
    assert not admitted.is_set()
    steady.done(1, None)
    third.join(10)
    assert admitted.is_set()


def test_patience_is_counted_from_the_first_refusal_and_ends_with_an_answer() -> None:
    clock = Turned()
    steady = pace(clock)
    steady.refused(clock.time, 1000.0)
    clock.time += 1000
    steady.answered()
    steady.refused(clock.time, 1000.0)
    clock.time += 1000
    with pytest.raises(ProviderError, match="asks to wait 1000 s; patience is 1800 s"):
        steady.refused(clock.time, 1000.0)


def test_backoff_doubles_with_jitter_and_has_an_end() -> None:
    dice = random.Random(0)
    for attempt, most in ((1, 1.0), (2, 2.0), (3, 4.0), (30, 60.0)):
        drawn = [backoff(attempt, dice) for _ in range(200)]
        assert most / 2 <= min(drawn) < max(drawn) <= most
        assert len(set(drawn)) > 190


def test_the_breaker_needs_half_of_the_last_requests_and_a_few_of_its_own() -> None:
    breaker = Breaker([True] * WINDOW)
    for _ in range(LEAST + 4):
        breaker.note(False, "the server failed")
    with pytest.raises(
        ProviderError, match=rf"25 of the last {WINDOW} requests to the endpoint failed.*server failed"
    ):
        breaker.note(False, "the server failed")


def test_the_breaker_is_not_tripped_by_a_few_first_failures() -> None:
    breaker = Breaker()
    for _ in range(LEAST - 1):
        breaker.note(False)
    with pytest.raises(ProviderError, match=f"{LEAST} of the last {LEAST}"):
        breaker.note(False)
