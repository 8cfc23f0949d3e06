"""A process that asks a served teacher is killed at any moment: nothing that was paid for is lost or bought twice."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from builders import asking, killing
from builders.endpoint import HANG_UP, Endpoint, Sent, answer, error, serving
from potstill.generate.served import Clock, Given

WORKERS = 8
FAULTS = {
    3: error(500),
    5: error(429, retry_after_ms="1"),
    7: HANG_UP,
    11: answer("", "stop"),
    13: error(400, "content_filter"),
}


def script(sent: Sent, times: int):
    """An answer after some milliseconds; of some prompts a fault first, or always."""
    threading.Event().wait(0.004)
    number = int(sent.prompt[1:])
    fault = FAULTS.get(number % 100)
    if fault is not None and (times == 0 or number % 100 > 10):
        return fault
    return answer(f"so {sent.prompt}")


def work(url: str, place: str, count: int) -> list[Given]:
    """Ask for everything, in a process of its own."""
    prompts = [f"p{i}" for i in range(count)]
    return asking.ask(url, Path(place), prompts, workers=WORKERS, clock=Clock())


def kept(place: Path) -> set[str]:
    """The prompts whose replies the journal holds for good."""
    if not (place / "journal.sqlite").exists():
        return set()
    db = sqlite3.connect(place / "journal.sqlite", timeout=60)
    try:
        rows = db.execute(
            "SELECT json_extract(body, '$.messages[0].content') FROM attempts JOIN requests USING (key) "
            "WHERE state IN ('answered', 'rejected') OR (state = 'received' AND status = 200)"
        ).fetchall()
    except sqlite3.OperationalError:  # killed before its tables were there
        return set()
    finally:
        db.close()
    return {prompt for (prompt,) in rows}


def survive(place: Path, server: Endpoint, count: int, kills: int) -> list[Given]:
    """Kill the asking process so many times, then let it finish; checks what was sent after every kill."""
    dice, seen = random.Random(1), list[tuple[set[str], Counter[str]]]()
    while len(seen) < kills:
        args = (server.url, str(place), count)
        killing.start_and_kill(work, args, lambda: len(server.sent), count // kills, dice)
        seen.append((kept(place), Counter(server.prompts)))
    given = work(server.url, str(place), count)
    for there, sent in seen:
        # What was kept is never asked for again.
        assert {prompt: server.prompts[prompt] for prompt in there} == {
            prompt: sent[prompt] for prompt in there
        }
    return given


def prove(place: Path, count: int, kills: int) -> None:
    """Compare an undisturbed process with killed ones: answers and requests."""
    with serving(script) as server:
        undisturbed = work(server.url, str(place / "calm"), count)
        calm = len(server.sent)
    with serving(script) as server:
        given = survive(place / "killed", server, count, kills)
        assert len(server.sent) <= calm + kills * WORKERS
    assert [replace(one, attempts=0, at=0.0, endpoint="") for one in given] == [
        replace(one, attempts=0, at=0.0, endpoint="") for one in undisturbed
    ]


@pytest.fixture(autouse=True)
def _imports(monkeypatch):
    """Where the server that forks the processes finds what it imports once for all of them."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


# W-06, W-17, field case 78
def test_ten_kills_lose_nothing_and_buy_nothing_twice(tmp_path):
    prove(tmp_path, count=400, kills=10)


@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_a_hundred_kills_over_ten_thousand_prompts_lose_nothing_and_buy_nothing_twice(tmp_path):
    prove(tmp_path, count=10_000, kills=100)


FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from pathlib import Path
from builders import asking, killing
from potstill.generate.served import Clock
peaks = []
def note(now):
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
given = asking.ask(sys.argv[1], Path(sys.argv[2]), [f"p{i}" for i in range(20_000)], workers=32, clock=Clock(), on_progress=note)
assert len(given) == 20_000
quarter = peaks[len(peaks) // 4]
assert peaks[-1] < quarter + 80_000, (quarter, peaks[-1])
"""


# W-18
@pytest.mark.prove
@pytest.mark.timeout(1800)
def test_twenty_thousand_prompts_need_few_files_and_little_memory(tmp_path):
    with serving(answer("fine")) as server:
        done = subprocess.run(
            [sys.executable, "-c", FEW_FILES, server.url, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=1500,
        )
    assert done.returncode == 0, done.stderr
