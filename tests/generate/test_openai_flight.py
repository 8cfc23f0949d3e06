"""Paid answers in flight while something else fails."""

from __future__ import annotations

import threading

import pytest

from builders.asking import ask, states, texts
from builders.endpoint import answer, error, serving
from potstill.errors import MachineError, ProviderError
from potstill.generate import campaign
from potstill.generate.journal import Journal

FOUR = ["a", "b", "c", "d"]


def test_an_error_lets_requests_in_flight_finish_as_long_as_a_request_may_take(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(campaign, "DRAIN_SECONDS", 0.0)
    refused, polls = threading.Event(), []

    def script(sent, times):
        if sent.prompt == "bad":
            return error(401)
        refused.wait(30)
        return answer()

    def progress(_):
        polls.append(1)
        if len(polls) == 3:
            refused.set()

    monkeypatch.setattr("potstill.generate.reports.SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("potstill.generate.reports.LEAST_SHARE", 0.0)
    with serving(script) as server, pytest.raises(ProviderError, match="the key is refused"):
        ask(server, tmp_path, ["a", "b", "bad"], on_progress=progress)
    assert sorted(states(tmp_path)) == ["answered", "answered", "failed"]


def test_progress_that_cannot_be_written_loses_no_answer_in_flight(tmp_path) -> None:
    failed = threading.Event()

    def progress(_):
        failed.set()
        raise OSError(28, "No space left on device")

    with serving(lambda sent, times: failed.wait(30) and answer()) as server:
        with pytest.raises(OSError, match="No space left"):
            ask(server, tmp_path, FOUR, on_progress=progress)
        assert states(tmp_path) == ["answered"] * len(server.sent)


@pytest.mark.parametrize("times", [1, 5])
def test_a_reply_is_kept_once_the_journal_can_be_written_again(tmp_path, monkeypatch, times) -> None:
    keep, failures = Journal.keep, iter(range(times))

    def full(journal, *args, **kwargs):
        if next(failures, None) is not None:
            raise MachineError("full")
        keep(journal, *args, **kwargs)

    monkeypatch.setattr(Journal, "keep", full)
    with serving() as server:
        assert texts(ask(server, tmp_path, ["a", "b"])) == ["so a", "so b"]
        assert len(server.sent) == 2


def test_a_journal_that_stays_full_is_an_error_in_the_end(tmp_path, monkeypatch) -> None:
    def full(*_, **__):
        raise MachineError("full")

    monkeypatch.setattr(Journal, "keep", full)
    with serving() as server, pytest.raises(MachineError, match="full"):
        ask(server, tmp_path, ["a"])


def test_a_write_that_fails_takes_no_other_of_its_group_with_it(tmp_path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        begun, go = threading.Event(), threading.Event()
        journal._do(lambda db: (begun.set(), go.wait(10)))
        begun.wait(10)
        bad = journal._do(lambda db: 1 / 0)
        good = journal._do(lambda db: db.execute("INSERT INTO consents VALUES ('p', 7)"))
        go.set()
        good.result()
        with pytest.raises(ZeroDivisionError):
            bad.result()
        assert journal.consent("p") == 7


def test_nothing_is_sent_after_a_stop(tmp_path) -> None:
    with serving() as server:
        ask(server, tmp_path, FOUR, should_stop=lambda: True)
        assert server.sent == []


def test_a_reply_that_was_not_noted_as_read_is_read_before_the_stage_ends(tmp_path, monkeypatch) -> None:
    settle, calls = Journal.settle, iter(range(100))
    monkeypatch.setattr(Journal, "settle", lambda *a, **k: next(calls) == 1 or settle(*a, **k))
    with serving() as server:
        assert texts(ask(server, tmp_path, ["a", "b"])) == ["so a", "so b"]
        assert len(server.sent) == 2


def test_a_reply_that_can_never_be_noted_as_read_stops_the_stage(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Journal, "settle", lambda *_, **__: None)
    with serving() as server, pytest.raises(ProviderError, match="1 of 1 requests have no answer"):
        ask(server, tmp_path, ["a"])
