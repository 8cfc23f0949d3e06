"""What one thread waits for and another does."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """What a write will give, for one thread that waits. (`concurrent.futures.Future` costs five times as much.)"""

    __slots__ = ("_done", "_error", "_value")

    def __init__(self) -> None:
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None

    def set_result(self, value: T) -> None:
        """The write is on disk."""
        self._value = value
        self._done.release()

    def set_exception(self, error: BaseException) -> None:
        """The write failed."""
        self._error = error
        self._done.release()

    def result(self) -> T:
        """Wait, and return what the write gave or raise what it raised."""
        with self._done:
            if self._error is not None:
                raise self._error
            return self._value
