"""Signals and closed pipes: how a command stops, and the command that continues."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from builders import places
from builders.cli import potstill
from builders.faults import failing, pressing
from potstill import check as preflight
from potstill.errors import Interrupted
from potstill.runs import setup
from potstill.stages import _train as train_stage


def test_the_command_that_continues_runs_in_a_shell(tmp_path, monkeypatch):
    """A folder with a space in its name, from the run and from `status`; word for word it goes on."""
    places.write(tmp_path, runs="my runs")
    with monkeypatch.context() as patch:
        failing(patch, Interrupted("stopped.", signal_number=2))
        stopped = potstill("run", "r.yaml", cwd=tmp_path)
    assert stopped.returncode == 130
    status = potstill("status", "my runs/r", cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    for text in (stopped.stderr, status.stdout):
        command = text.rstrip().partition("Continue with: ")[2]
        assert shlex.split(command) == ["potstill", "run", "my runs/r"]
    assert potstill(*shlex.split(command)[1:], cwd=tmp_path).returncode == 0


def test_a_second_interrupt_stops_at_once_and_is_recorded(tmp_path, monkeypatch):
    """The first one asks to stop, the second one stops at once."""
    places.write(tmp_path)
    with monkeypatch.context() as patch:
        pressing(patch, train_stage, "train", times=2)
        done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr.endswith("Continue with: potstill run runs/r\n")
    assert json.loads(done.stdout)["error"]["code"] == "interrupted"
    status = potstill("status", "runs/r", cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    assert status.stdout == "runs/r: interrupted · stage distill\nContinue with: potstill run runs/r\n"
    assert potstill("run", "runs/r", cwd=tmp_path).returncode == 0


def test_an_interrupt_while_rows_are_read_stops_before_the_stages(tmp_path, monkeypatch):
    """The signal is noticed before the first stage, whether that one is finished already or not."""
    places.write(tmp_path)
    set_up = setup.set_up
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(setup, "set_up", lambda *given: signal.raise_signal(2) or set_up(*given))
            done = potstill("run", "r.yaml", cwd=tmp_path)
        assert done.returncode == 130
        assert "error: stopped by a signal" in done.stderr
        status = potstill("status", "runs/r", cwd=tmp_path)
        assert status.returncode == 0, status.stderr
        assert status.stdout.startswith("runs/r: interrupted")
        assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize(
    ("verb", "place", "name"), [("check", preflight, "check"), ("run", setup, "open_recipe")]
)
def test_an_interrupt_before_anything_is_saved_exits_130(tmp_path, monkeypatch, options, verb, place, name):
    """One line, the shell's code for it, and an object for programs."""
    pressing(monkeypatch, place, name)
    done = potstill(verb, "r.yaml", *options, cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted. Run the same command again.\n"
    if options:
        assert json.loads(done.stdout)["error"]["exit_code"] == 130
    else:
        assert done.stdout == ""


def without_reader(*arguments: str, cwd: Path, stderr: bool = False) -> tuple[int, bytes]:
    """Run a command whose output nobody reads any more, with `stderr` its errors neither."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "potstill", *arguments]
    errors = writing if stderr else subprocess.PIPE
    done = subprocess.run(command, cwd=cwd, stdout=writing, stderr=errors, timeout=120)
    os.close(writing)
    return done.returncode, done.stderr or b""


@pytest.mark.parametrize(
    "command",
    [
        ("schema",),
        ("--help",),
        ("check", "--help"),
        ("init", "new.yaml"),
        ("status", "nowhere", "--json"),
        ("check", "--quick", "r.yaml", "--json"),
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_a_command_with_141(tmp_path, command):
    """128 + SIGPIPE, as other programs end; the closed pipe was reported as a bug."""
    if "r.yaml" in command:
        places.write(tmp_path)
    code, errors = without_reader(*command, cwd=tmp_path)
    assert code == 141, errors
    for word in (b"Traceback", b"BrokenPipe", b"error", b"bug"):
        assert word not in errors


def test_a_closed_pipe_for_errors_ends_a_command_with_141(tmp_path):
    """What `2>&1 | head` does."""
    assert without_reader("status", "nowhere", cwd=tmp_path, stderr=True) == (141, b"")


def test_a_broken_pipe_inside_a_run_is_reported_as_a_bug(tmp_path, monkeypatch):
    """Only the reader of what potstill prints may go away without a word."""
    places.write(tmp_path)
    failing(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "this is a bug" in done.stderr


def test_an_interrupt_saves_and_names_the_command_that_continues(tmp_path):
    """SIGTERM while the teacher writes: what is finished is kept, and the second run writes only the rest."""
    stages = "[{generate: {filters: null, max_new_tokens: 12, batch_rows: 2}}, {distill: {steps: 1}}]"
    place = places.write(tmp_path, places.prompts(100), stages=stages)
    command = [sys.executable, "-m", "potstill", "run", "r.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen(
        command, cwd=place, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    journal = None
    while running.poll() is None and (journal is None or len(journal.read_text().splitlines()) < 5):
        journal = next(iter((place / "runs/.store").glob(".building-generate-*/.journal.jsonl")), None)
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143, errors
    assert "Continue with: potstill run runs/r" in errors
    again = potstill("run", "runs/r", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "answers were already written" in again.stderr
    lines = (place / "runs/r/stages/generate/answers.jsonl").read_text().splitlines()
    written = [json.loads(line)["row_id"] for line in lines]
    assert sorted(written) == sorted(f"p{i}" for i in range(100))
