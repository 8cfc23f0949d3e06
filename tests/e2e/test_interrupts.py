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
        said = potstill("run", "r.yaml", cwd=tmp_path)
    assert said.returncode == 130
    told = potstill("status", "my runs/r", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for text in (said.stderr, told.stdout):
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
    told = potstill("status", "runs/r", cwd=tmp_path).stdout
    assert told == "runs/r: interrupted · stage distill\nContinue with: potstill run runs/r\n"
    assert potstill("run", "runs/r", cwd=tmp_path).returncode == 0


def test_an_interrupt_while_rows_are_read_stops_before_the_stages(tmp_path, monkeypatch):
    """The signal is noticed before the first stage, whether that one is finished already or not."""
    places.write(tmp_path)
    found = setup.set_up
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(setup, "set_up", lambda opened: signal.raise_signal(2) or found(opened))
            done = potstill("run", "r.yaml", cwd=tmp_path)
        assert done.returncode == 130
        assert "error: stopped by a signal" in done.stderr
        assert potstill("status", "runs/r", cwd=tmp_path).stdout.startswith("runs/r: interrupted")
        assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("asked", [(), ("--json",)])
@pytest.mark.parametrize(
    ("verb", "place", "name"), [("check", preflight, "check"), ("run", setup, "open_recipe")]
)
def test_an_interrupt_before_anything_is_saved_exits_130(tmp_path, monkeypatch, asked, verb, place, name):
    """One line, the shell's code for it, and an object for programs."""
    pressing(monkeypatch, place, name)
    done = potstill(verb, "r.yaml", *asked, cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted. Run the same command again.\n"
    assert json.loads(done.stdout)["error"]["exit_code"] == 130 if asked else done.stdout == ""


def hung_up(*arguments: str, cwd: Path) -> tuple[int, bytes]:
    """Run a command whose reader has gone before it says anything."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "potstill", *arguments],
        cwd=cwd,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    return done.returncode, done.stderr


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
    code, said = hung_up(*command, cwd=tmp_path)
    assert code == 141, said
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said
    assert b"error" not in said
    assert b"bug" not in said


def test_a_closed_pipe_for_errors_ends_a_command_with_141(tmp_path):
    """What `2>&1 | head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "potstill", "status", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing, timeout=120)
    os.close(writing)
    assert done.returncode == 141


def test_a_broken_pipe_inside_a_run_is_reported_as_a_bug(tmp_path, monkeypatch):
    """Only the reader of what potstill prints may go away without a word."""
    places.write(tmp_path)
    failing(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "this is a bug" in done.stderr
