"""Stops, kills, and several runs on one journal."""

from __future__ import annotations

import threading

import pytest

from builders.asking import PROMPTS, ask, attempts, change, texts
from builders.endpoint import answer, error, serving
from potstill.errors import MachineError


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
    assert [state for (state,) in attempts(tmp_path, "state")] == ["unknown", "answered", "answered"]


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
