"""End replies whose time is up, also those that stall between two parts, where their reader waits and cannot look."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Watch:
    """A reply that is being read; `ended` once its connection was shut."""

    until: float
    connection: Any
    ended: bool = False


class Deadlines:
    """One thread that shuts the connections of replies that take too long."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._looks = math.inf  # when the thread looks next

    @contextmanager
    def watching(self, response: Any, until: float) -> Iterator[Watch]:
        """Shut a response's connection at `until` (as `time.monotonic` counts) unless it is read before."""
        stream = response.extensions.get("network_stream")
        watch = Watch(until, None if stream is None else stream.get_extra_info("socket"))
        with self._changed:
            self._watches.add(watch)
            if (
                until < self._looks
            ):  # else its thread wakes early enough, and need not be woken for each reply
                self._looks = until
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="deadlines")
                self._thread.start()
        try:
            yield watch
        finally:
            with self._changed:
                self._watches.discard(watch)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for watch in [watch for watch in self._watches if watch.until <= now]:
                    self._end(watch)
                self._looks = min((watch.until for watch in self._watches), default=math.inf)
                self._changed.wait(None if self._looks == math.inf else max(0.0, self._looks - now))

    def _end(self, watch: Watch) -> None:
        self._watches.discard(watch)
        watch.ended = True
        if watch.connection is not None:
            with suppress(OSError):  # it may have ended by itself
                watch.connection.shutdown(socket.SHUT_RDWR)
