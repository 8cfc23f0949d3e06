"""Signals that ask a command to stop: the first one is noted, and what works looks at it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Received:
    """The number of the last signal, 0 before one came."""

    number: int = 0


@contextmanager
def stop_signals() -> Iterator[Received]:
    """The first SIGINT, SIGTERM or SIGHUP asks stages to save and stop; a second one ends the process at once.

    A signal that the process was started to ignore, as SIGHUP is under nohup, stays ignored.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _frame: object) -> None:
        received.number = number
        signal.signal(number, before[number])

    handlers = {int(number): signal.getsignal(number) for number in STOPPING}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
