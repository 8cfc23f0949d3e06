"""What potstill prints where nobody watches, and whom it calls."""

from __future__ import annotations

import io
import re
import socket
import time

import pytest
from huggingface_hub import constants

from builders import places
from builders.cli import potstill
from potstill import console
from potstill.console import Console

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def looked_up(monkeypatch):
    """The names that are asked for while the hub is not switched off."""
    names: list[object] = []

    def refuse(host, *rest, **settings):
        names.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries again and again
    return names


def test_a_run_on_local_files_looks_up_no_name(tmp_path, looked_up):
    """Models and rows lie here: no name is looked up, although nothing says that the machine is offline."""
    places.write(
        tmp_path, stages="[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {samples: 2}}]"
    )
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert looked_up == []


def test_a_model_on_the_hub_is_looked_up(tmp_path, looked_up):
    """A model on the hub is looked up, so that the silence above means something."""
    places.write(tmp_path, teacher="{model: someone/some-model}")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 2
    assert looked_up


@pytest.mark.parametrize("steps", [10, 5000])
def test_a_bar_in_a_log_prints_a_few_whole_lines(monkeypatch, steps):
    """Off a terminal: whole lines, at most one in ten seconds however many updates come, and the last one."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Console(stream).bar("distill", steps) as bar:
        for step in range(1, steps + 1):
            now[0] += 35.0 / steps
            bar.update(step, "loss 1.0")
    lines = stream.getvalue().splitlines()
    assert stream.getvalue().endswith("\n")
    assert len(lines) == 4
    assert lines[-1].startswith("distill: 100 %")
    assert not {"\r", "\x1b"} & set(stream.getvalue())


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb")])
def test_a_build_server_that_pretends_to_be_a_terminal_gets_no_moving_bar(monkeypatch, name, value):
    """CI and TERM=dumb are believed, not the stream."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Console(Terminal()).live
    monkeypatch.setenv(name, value)
    stream = Terminal()
    with Console(stream).bar("distill", 3) as bar:
        for step in range(1, 4):
            bar.update(step)
    assert not {"\r", "\x1b"} & set(stream.getvalue())
    assert stream.getvalue().startswith("distill: 100 %")


@pytest.mark.parametrize("wanted", [True, False])
def test_a_terminal_that_wants_no_colour_gets_none(monkeypatch, wanted):
    """NO_COLOR: the bar moves as before, but no character of it is coloured."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if not wanted:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Console(stream).bar("distill", 3) as bar:
        for step in range(1, 4):
            bar.update(step, "loss 1.0")
    assert "distill" in stream.getvalue()
    assert bool(COLOUR.search(stream.getvalue())) is wanted


def test_a_quiet_console_prints_only_warnings():
    """With --json nothing but warnings is said."""
    stream = io.StringIO()
    quiet = Console(stream, quiet=True)
    quiet.say("loading")
    with quiet.bar("distill", 1) as bar:
        bar.update(1)
    assert stream.getvalue() == ""
    quiet.warn("rows are missing")
    assert stream.getvalue() == "warning: rows are missing\n"
