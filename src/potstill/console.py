"""Progress and warnings on stderr: bars on a terminal, plain lines elsewhere; and output that nobody reads.

Text from files, models and recipes is printed with its controls made visible. A stream that cannot be
written falls silent, and ends no work.
"""

from __future__ import annotations

import io
import logging
import os
import re
import select
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

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


def hung(start: str, text: str, width: int | None) -> list[str]:
    """A line that begins with `start`; with a width it is wrapped, and what follows stands below its text."""
    if width is None:
        return [f"{start}{text}".rstrip()]
    inside = max(width - len(start), 20)
    parts = textwrap.wrap(text, inside, break_on_hyphens=False, break_long_words=False) or [""]
    return [
        f"{before}{part}".rstrip()
        for before, part in zip([start, *[" " * len(start)] * (len(parts) - 1)], parts, strict=True)
    ]


def typed(*, quoted: bool = True) -> str:
    """The command of this program as the next one must be typed: `potstill` where a shell finds it by that name.

    Else the path of its script, as after `.venv/bin/potstill run …` without an activated environment.
    """
    started = Path(sys.argv[0])
    if started.parts[-2:] == ("potstill", "__main__.py"):  # python -m potstill
        started = Path(sys.executable).with_name("potstill")
    elif started.name != "potstill":
        return "potstill"
    on_path = shutil.which("potstill")
    if not started.is_file() or (on_path and os.path.samefile(on_path, started)):
        return "potstill"
    here = Path.cwd()
    path = started.relative_to(here) if started.is_relative_to(here) else started
    return shlex.quote(str(path)) if quoted else str(path)


# C0 and C1 controls but tab and newline, bidirectional controls, line separators, byte-order mark, surrogates
_CONTROLS = re.compile(
    "([\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff])\\1*"
)


def visible(text: str) -> str:
    """Controls that would reorder or hide text, written out as ⟨U+202E⟩; a run of one as ⟨U+202E ×9⟩."""
    return _CONTROLS.sub(_name, text.replace("\r\n", "\n"))


def _name(match: re.Match[str]) -> str:
    count = len(match[0])
    return f"⟨U+{ord(match[1]):04X}{f' ×{count}' if count > 1 else ''}⟩"


class Lasting:
    """A text stream that falls silent for good once it cannot be written.

    A reader that goes away, a terminal that closes or a full disk must not end hours of work.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._silent = stream is None
        self.unread = False  # its reader has gone

    def write(self, text: str) -> int:
        """Write text, or nothing."""
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered, or nothing."""
        self._try("flush")

    def isatty(self) -> bool:
        """Whether a terminal shows the text."""
        return bool(self._try("isatty"))

    def close(self) -> None:
        """Stay open: other libraries close a stream of errors that they found at their start."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stream"], name)

    def _try(self, method: str, *arguments: str) -> Any:
        if self._silent:
            return None
        try:
            return getattr(self._stream, method)(*arguments)
        except UnicodeError:
            raise
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            self._silent, self.unread = True, isinstance(error, BrokenPipeError)
            # The interpreter writes out what is buffered once more at its end.
            with suppress(OSError, ValueError):
                _discard(self.fileno())
            return None


class Bar:
    """Progress of one piece of work; this one shows nothing."""

    def update(self, done: float, note: str = "") -> None:
        """Show that `done` units are finished, with a short note."""


class Console:
    """Prints on stderr, so that stdout stays for results; with `quiet` only warnings."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = cast("TextIO", Lasting(stream or sys.stderr))
        self.quiet = quiet
        self.live = self.stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")

    def say(self, text: str = "") -> None:
        """Print a line, unless quiet."""
        if not self.quiet:
            print(visible(text), file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning, also when quiet."""
        print(f"warning: {visible(text)}", file=self.stream, flush=True)

    def ask(self, question: str) -> bool:
        """Whether somebody at the terminal says yes; false where nobody can answer."""
        if not (self.live and sys.stdin is not None and sys.stdin.isatty()):
            return False
        print(f"{visible(question)} [y/N] ", end="", file=self.stream, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    @contextmanager
    def bar(self, label: str, total: float, done: float = 0, *, plain: bool = False) -> Iterator[Bar]:
        """Show progress with the time left for work of `total` units, of which an earlier process did `done`.

        `plain` prints lines also on a terminal, where other lines and questions come between.
        """
        label = visible(label)
        if self.quiet:
            yield Bar()
        elif self.live and not plain:
            yield from self._rich_bar(label, total, done)
        else:
            yield _Lines(self, label, total, done)

    def _rich_bar(self, label: str, total: float, done: float) -> Iterator[Bar]:
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
            yield _Live(progress, progress.add_task(label, total=total, completed=int(done), note=""))


def silent() -> Console:
    """A console that prints nothing, for the processes of a run that are not the first."""
    logging.getLogger("potstill").setLevel(logging.CRITICAL)
    return Console(io.StringIO(), quiet=True)


class _Live(Bar):
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def update(self, done: float, note: str = "") -> None:
        self._progress.update(self._task, completed=done, note=visible(note))


class _Lines(Bar):
    def __init__(self, console: Console, label: str, total: float, before: float) -> None:
        self._console, self._label, self._total, self._before = console, label, total, before
        self._start = self._last = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        now = time.monotonic()
        finished = done >= self._total
        if not finished and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        spent = now - self._start
        here = done - self._before
        left = f"{clock(spent * (self._total - done) / here)} left" if here > 0 else "starting"
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
        with suppress(OSError, ValueError, AttributeError):
            pipes.register(stream.fileno(), 0)
    closed = [descriptor for descriptor, event in pipes.poll(0) if event & select.POLLERR]
    for descriptor in closed:
        _discard(descriptor)
    return bool(closed)


def _discard(descriptor: int) -> None:
    """Let what is written to a descriptor go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
