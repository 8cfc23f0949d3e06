"""Read ahead: the signals of coming batches are fetched and checked in a thread while this one trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Generic, TypeAlias, TypeVar

from potstill.cache.reader import Cache
from potstill.signals.signal import Signal

Keys: TypeAlias = tuple[bytes, ...]
Value = TypeVar("Value")

DEPTH = 2  # batches that wait in memory


class Ahead(Generic[Value]):
    """What `read(keys)` gives for the batches that are expected, read before they are asked for.

    Whatever else is asked for is read at once, and changes nothing about what is expected.
    """

    def __init__(self, read: Callable[[Sequence[bytes]], Value], depth: int = DEPTH) -> None:
        self._read = read
        self._depth = depth
        self._lock = Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Iterator[Keys] = iter(())
        self._waiting: deque[tuple[Keys, Future[Value]]] = deque()

    def expect(self, batches: Iterable[Keys]) -> None:
        """Read these batches next, in place of those that were expected before; pulled as they are needed."""
        self._drop()
        self._coming = iter(batches)
        self._fill()

    def take(self, keys: Keys) -> Value:
        """The value of a batch, as soon as it is read."""
        if not self._waiting or self._waiting[0][0] != keys:
            return self._guarded(keys)
        _, future = self._waiting.popleft()
        value = future.result()
        self._fill()
        return value

    def close(self) -> None:
        """End the thread."""
        self._drop()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None

    def _drop(self) -> None:
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._coming = iter(())

    def _fill(self) -> None:
        while len(self._waiting) < self._depth and (keys := next(self._coming, None)) is not None:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="potstill-cache")
            self._waiting.append((keys, self._thread.submit(self._guarded, keys)))

    def _guarded(self, keys: Keys) -> Value:
        with self._lock:
            return self._read(keys)


def ahead(cache: Cache, batches: Iterable[Sequence[bytes]], depth: int = DEPTH) -> Iterator[Signal]:
    """The joined signal of each batch of keys, in order; at most `depth` of them wait in memory.

    An error of reading is raised where its batch is due.
    """
    reader: Ahead[Signal] = Ahead(cache.batch, max(1, depth))
    due: deque[Keys] = deque()

    def noted() -> Iterator[Keys]:
        for keys in batches:
            due.append(tuple(keys))
            yield due[-1]

    try:
        reader.expect(noted())
        while due:
            yield reader.take(due.popleft())
    finally:
        reader.close()
