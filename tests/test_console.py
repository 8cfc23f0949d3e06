"""What potstill prints on a terminal, in a log and in silence."""

from __future__ import annotations

import errno
import io
import logging
import re

import pytest

from potstill import console
from potstill.console import Console

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_counts_the_work_of_this_process_alone(monkeypatch, terminal):
    """Resumed at step 90 of 100, ten seconds a step: it said "10s left" for minutes."""
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal() if terminal else io.StringIO()
    shown = Console(stream)
    with shown.bar("distill", 100, 90) as bar:
        for step in (91, 92, 93, 94):
            now[0] += 10.0
            bar.update(step)
    text = stream.getvalue()
    assert ("01:00" if terminal else "distill: 94 % · 1m 00s left") in text


def test_work_that_was_all_done_before_has_no_time_left_to_tell(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Console(stream).bar("distill", 100, 90) as bar:
        now[0] += 20.0
        bar.update(90)
    assert stream.getvalue() == "distill: 90 % · starting\n"


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


@pytest.mark.parametrize("coloured", [True, False])
def test_no_color_is_obeyed(monkeypatch, coloured):
    """NO_COLOR: the bar moves as before, but no character of it is coloured."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if not coloured:
        monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Console(stream).bar("distill", 3) as bar:
        for step in range(1, 4):
            bar.update(step, "loss 1.0")
    assert "distill" in stream.getvalue()
    assert bool(COLOUR.search(stream.getvalue())) is coloured


def test_a_quiet_console_prints_only_warnings():
    """With --json nothing but warnings is printed."""
    stream = io.StringIO()
    quiet = Console(stream, quiet=True)
    quiet.say("loading")
    with quiet.bar("distill", 1) as bar:
        bar.update(1)
    assert stream.getvalue() == ""
    quiet.warn("rows are missing")
    assert stream.getvalue() == "warning: rows are missing\n"


def test_a_log_record_is_printed_as_a_warning(capsys):
    logger = logging.Logger("potstill")
    logger.addHandler(console.WarningLines(logging.WARNING))
    logger.info("loading")
    logger.warning("%d rows are missing", 3)
    assert capsys.readouterr().err == "warning: 3 rows are missing\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m 00s"), (185, "3m 05s"), (3600, "1h 00m"), (8040, "2h 14m")]
)
def test_a_duration_is_written_for_people(seconds, text):
    assert console.clock(seconds) == text


class Failing(io.StringIO):
    """A stream whose second write fails."""

    def __init__(self, error: Exception, live: bool) -> None:
        super().__init__()
        self.error, self.live, self.writes = error, live, 0

    def isatty(self) -> bool:
        return self.live

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes > 1:
            raise self.error
        return super().write(text)


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("I/O operation on closed file."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error))
@pytest.mark.parametrize("live", [True, False])
def test_a_stream_that_cannot_be_written_falls_silent_for_good(monkeypatch, error, live):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Failing(error, live)
    loud = Console(stream)
    loud.say("first")
    with loud.bar("distill", 3) as bar:
        for step in range(1, 4):
            bar.update(step)
    loud.say("second")
    loud.warn("third")
    assert stream.writes == 2


def test_a_process_without_stderr_prints_nowhere(monkeypatch, capsys):
    monkeypatch.setattr(console.sys, "stderr", None)
    silent = Console()
    silent.say("loading")
    with silent.bar("distill", 1) as bar:
        bar.update(1)
    assert capsys.readouterr().out == ""


def test_text_that_no_encoding_takes_is_still_an_error():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    with pytest.raises(UnicodeEncodeError):
        Console(stream).say("é")


HIDDEN = {
    "\x1b[2J": "⟨U+001B⟩[2J",
    "\x1b]0;title\x07": "⟨U+001B⟩]0;title⟨U+0007⟩",
    "\x9b31m": "⟨U+009B⟩31m",
    "ok\rFAIL": "ok⟨U+000D⟩FAIL",
    "a\u202eb": "a⟨U+202E⟩b",
    "a\u2066b\u2069": "a⟨U+2066⟩b⟨U+2069⟩",
    "a\u2028b": "a⟨U+2028⟩b",
    "\udcff": "⟨U+DCFF⟩",
}


@pytest.mark.parametrize("text", HIDDEN)
def test_controls_are_printed_as_their_names(text):
    stream = io.StringIO()
    shown = Console(stream)
    shown.say(text)
    shown.warn(text)
    with shown.bar(text, 1) as bar:
        bar.update(1, text)
    assert stream.getvalue().count(HIDDEN[text]) == 4
    assert text not in stream.getvalue()


@pytest.mark.parametrize(
    ("terminal", "typed", "agreed"),
    [
        (True, "y\n", True),
        (True, "YES\n", True),
        (True, "\n", False),
        (True, "", False),
        (False, "y\n", False),
    ],
)
def test_a_question_is_answered_at_a_terminal_alone(monkeypatch, terminal, typed, agreed):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdin", Terminal(typed) if terminal else io.StringIO(typed))
    stream = Terminal() if terminal else io.StringIO()
    assert Console(stream).ask("go on?") is agreed
    assert ("go on? [y/N]" in stream.getvalue()) is terminal


def test_a_plain_bar_prints_lines_on_a_terminal_too(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Console(stream).bar("generate", 2, plain=True) as bar:
        bar.update(2)
    assert stream.getvalue().startswith("generate: 100 %")
    assert "\x1b" not in stream.getvalue()
