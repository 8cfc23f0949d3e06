"""The journal: what is on disk before anything else happens."""

from __future__ import annotations

import threading

import pytest

from builders.asking import ask, states, texts
from builders.endpoint import answer, serving
from potstill.errors import MachineError
from potstill.generate import replies
from potstill.generate.entries import Intent, Spent
from potstill.generate.journal import Journal

INTENT = Intent("k", "f", {"model": "m"}, 20, "http://e", "m", "payer", 100, 0.5, "USD")


# W-05, W-13
def test_a_request_is_on_disk_before_the_server_sees_it(tmp_path) -> None:
    seen = []
    with serving(lambda sent, times: seen.append(states(tmp_path)) or answer("fine")) as server:
        ask(server, tmp_path, ["a"])
    assert seen == [["sent"]]


# W-05, W-16
def test_a_reply_is_on_disk_before_it_is_read(tmp_path, monkeypatch) -> None:
    """Whatever its reader does, what was paid for is there: here the reader fails, and the reply is read later."""

    def broken(body):
        raise MemoryError("no room")

    with serving() as server:
        with monkeypatch.context() as patch:
            patch.setattr(replies, "read", broken)
            with pytest.raises(MemoryError):
                ask(server, tmp_path, ["a"])
        assert states(tmp_path) == ["received"]
        assert texts(ask(server, tmp_path, ["a"])) == ["so a"]
        assert len(server.sent) == 1


def test_a_commit_is_on_the_disk_when_its_caller_goes_on(tmp_path) -> None:
    """Full synchronisation: a loss of power takes back no commit."""
    with Journal(tmp_path / "j.sqlite") as journal:
        modes = journal._do(
            lambda db: (
                db.execute("PRAGMA journal_mode").fetchone(),
                db.execute("PRAGMA synchronous").fetchone(),
            )
        ).result()
    assert modes == (("wal",), (2,))


def test_what_arrives_together_is_written_together(tmp_path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        begun, go = threading.Event(), threading.Event()
        journal._do(lambda db: (begun.set(), go.wait(10)))
        begun.wait(10)
        commits: list[str] = []
        journal._do(
            lambda db: db.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        )
        threads = [threading.Thread(target=journal.intend, args=(INTENT, 0.0)) for _ in range(20)]
        for thread in threads:
            thread.start()
        while journal._work.qsize() < 21:
            threading.Event().wait(0.001)
        go.set()
        for thread in threads:
            thread.join()
        assert journal.spent("payer").requests == 20
    assert len(commits) <= 4


def test_what_nobody_stated_counts_with_what_was_reserved(tmp_path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        numbers = [journal.intend(INTENT, 0.0) for _ in range(3)]
        journal.settle(numbers[0], "answered", tokens_in=10, tokens_out=5, cost=0.1)
        journal.settle(numbers[1], "failed", tokens_in=0, tokens_out=0, cost=0.0)
        spent = journal.spent("payer")
        assert spent == Spent(3, 115, pytest.approx(0.6), 10, 5, 0.1, 1)
        assert journal.spent("another") == Spent()


def test_an_error_reaches_the_caller_and_the_journal_goes_on(tmp_path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        with pytest.raises(MachineError, match=r"j\.sqlite cannot be used: no such table"):
            journal._do(lambda db: db.execute("SELECT * FROM absent")).result()
        with pytest.raises(ZeroDivisionError):
            journal._do(lambda db: 1 / 0).result()
        assert journal.intend(INTENT, 0.0) == 1


def test_a_closed_journal_says_so(tmp_path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    journal.close()
    with pytest.raises(MachineError, match="is closed"):
        journal.intend(INTENT, 0.0)


def test_runs_that_create_the_journal_together_all_open_it(tmp_path) -> None:
    begin, spent = threading.Barrier(6), []

    def start() -> None:
        begin.wait(10)
        with Journal(tmp_path / "j.sqlite") as journal:
            spent.append(journal.spent("payer"))

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert spent == [Spent()] * 6
