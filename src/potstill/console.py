"""Progress and warnings on stderr: bars on a terminal, plain lines elsewhere; and output that nobody reads."""

from __future__ import annotations

import io
import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0


def clock(seconds: float) -> str:
    """A duration for people: 7s, 3m 05s, 2h 14m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


class Bar:
    """Progress of one piece of work; this one shows nothing."""

    def update(self, done: float, note: str = "") -> None:
        """Show that `done` units are finished, with a short note."""


class Console:
    """Prints on stderr, so that stdout stays for results; with `quiet` only warnings."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")

    def say(self, text: str = "") -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, also when quiet."""
        print(f"warning: {text}", file=self.stream, flush=True)

    @contextmanager
    def bar(self, label: str, total: float) -> Iterator[Bar]:
        """Show progress with the time left for work of `total` units."""
        if self.quiet:
            yield Bar()
        elif self.live:
            yield from self._rich_bar(label, total)
        else:
            yield _Lines(self, label, total)

    def _rich_bar(self, label: str, total: float) -> Iterator[Bar]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = RichConsole(file=self.stream, no_color=bool(os.environ.get("NO_COLOR")))
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=None if console.width < 60 else 24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        ]
        with Progress(*columns, console=console) as progress:
            yield _Live(progress, progress.add_task(label, total=total, note=""))


class _Live(Bar):
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: float, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=note)


class _Lines(Bar):
    def __init__(self, console: Console, label: str, total: float) -> None:
        self._console, self._label, self._total = console, label, total
        self._start = self._last = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        finished = done >= self._total
        if not finished and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        spent = now - self._start
        left = f"{clock(spent * (self._total - done) / done)} left" if done else "starting"
        when = f"in {clock(spent)}" if finished else left
        share = 100 * done / self._total if self._total else 100
        self._console.say(f"{self._label}: {share:.0f} % · {when}{' · ' + note if note else ''}")


class WarningLines(logging.Handler):
    """Prints the library's log records as warnings on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        Console().warn(record.getMessage())


def discard_unread_output() -> bool:
    """Redirect output whose reader has gone to /dev/null; false when no reader has gone."""
    pipes = select.poll()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with suppress(io.UnsupportedOperation):
            pipes.register(stream.fileno(), 0)
    closed = [descriptor for descriptor, event in pipes.poll(0) if event & select.POLLERR]
    for descriptor in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return bool(closed)
