"""Runs of a served teacher that are interrupted, killed or freed: nothing is bought twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading

import pytest

from builders import many, served
from builders.cli import potstill
from builders.endpoint import serving
from builders.served import SMALL, lines, run, told

pytestmark = pytest.mark.usefixtures("served_key")


# W-01, field case 78
def test_an_interrupted_run_keeps_what_was_answered_and_goes_on(tmp_path):
    """Ctrl-C once: nothing more is sent, answers so far are written out, and the command that goes on is said."""
    pressed = []

    def script(sent, times):
        if len(server.sent) == 22 and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server, rows=120)
        done = run(tmp_path, "generate.batch_rows=2")
        assert done.returncode == 130
        assert "Continue with: potstill run runs/r" in done.stderr
        so_far = lines(tmp_path / "runs/r/answers-so-far.jsonl")
        assert len(so_far) == len(server.sent) < 120
        status = potstill("status", "runs/r", cwd=tmp_path).stdout
        assert f"{len(so_far)} of 120 answers · {len(so_far)} requests" in status
        assert "USD" in status
        asking = json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)["asking"]
        assert asking["done"] == len(so_far)
        assert potstill("run", "runs/r", cwd=tmp_path).returncode == 0
        assert set(server.prompts.values()) == {1}
    assert not (tmp_path / "runs/r/answers-so-far.jsonl").exists()


def test_freeing_the_store_leaves_paid_answers(tmp_path):
    with serving(told) as server:
        served.write(tmp_path, server)
        assert run(tmp_path).returncode == 0
        shutil.rmtree(tmp_path / "runs/r")
        assert potstill("store", "gc", "--yes", cwd=tmp_path).returncode == 0
        assert {p.name for p in (tmp_path / "runs/.store").glob("[!.]*")} == set()
        again = run(tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(server.sent) == 40
    facts = json.loads((tmp_path / "runs/r/stages/generate/manifest.json").read_text())["facts"]
    assert facts["answers"] == 40


def test_a_killed_run_says_where_it_stood_and_asks_only_what_is_missing(tmp_path):
    enough = threading.Event()

    def script(sent, times):
        if len(server.sent) >= 30:
            enough.set()
        return told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server, rows=200)
        process = many.start(tmp_path, "run", "r.yaml", *SMALL, "generate.batch_rows=2")
        while not enough.wait(0.1):
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        status = potstill("status", "runs/r", cwd=tmp_path).stdout
        assert "runs/r: died · stage generate" in status
        assert "of 200 answers" in status
        asked = len(server.sent)
        again = potstill("run", "runs/r", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert asked < 200
        assert len(server.sent) <= 202
    assert len(lines(tmp_path / "runs/r/stages/generate/answers.jsonl")) == 200


# W-01
def test_a_second_ctrl_c_leaves_at_once_and_the_journal_is_whole(tmp_path):
    pressed, left = [], threading.Event()

    def script(sent, times):
        if len(server.sent) == 20 and not pressed:
            pressed.append(True)
            before = signal.getsignal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is before:  # until the first is noticed
                threading.Event().wait(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            left.wait(10)  # the run leaves without this reply
        return told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server)
        done = run(tmp_path, "generate.batch_rows=1")
        left.set()
        assert done.returncode == 130
        assert "stopped at once" in done.stderr
        again = potstill("run", "runs/r", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(server.sent) <= 41
    assert "may have been billed" in again.stderr
