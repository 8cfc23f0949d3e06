"""A cache of hidden states on a GPU, and a training step that reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_clock import Clock, Result, attempt
from gpu_models import Pair, ours

from potstill.types import Batch


def cached(clock: Clock, tiny: bool) -> Result:
    """What a capture of hidden states writes, how fast it is read to the device, and a step that reads it."""
    from potstill.cache.header import Header
    from potstill.cache.keys import key_of
    from potstill.cache.reader import Cache
    from potstill.cache.writer import Writer
    from potstill.data.batch import readings
    from potstill.signals.hidden import Hidden
    from potstill.teachers.local import LocalTeacher

    pair = Pair(clock, tiny)
    live = LocalTeacher(pair.teacher, vocabulary=pair.vocabulary, fingerprint="random")
    clock.each({"live": partial(ours, pair)})
    (batch,) = pair.batches()
    for stored in ("int8", "fp16"):
        with tempfile.TemporaryDirectory() as folder:
            signal, begin, entries = live.signal(batch), 0, []
            for row in pair.rows:
                end = begin + sum(row.scored[1:])
                places = torch.arange(begin, end, device=clock.device)
                scored = (False, *row.scored[1:])
                entries.append((key_of(row.input_ids, scored), signal.at(places)))
                begin = end
            header = Header("hidden", {"format": stored, "dtype": "bfloat16"}, "benchmark", pair.vocabulary)

            def write(place: Path = Path(folder), header: Header = header, entries: Any = entries) -> None:
                with Writer(place, header) as writer:
                    writer.add_block(entries)
                    writer.finish()

            seconds = clock.wall(write)
            teacher = Stored(Cache.open(folder), clock.device, Hidden)
            keys = [key_of(read.input_ids, read.scored) for read in readings(batch)]
            teacher.read(keys)  # checksums once, and the head
            reading = min(clock.wall(partial(teacher.read, keys)) for _ in range(5))
            measured = {
                "write_seconds_with_head": round(seconds, 3),
                "positions_per_second_to_device": round(pair.scored / reading),
                "step": attempt(partial(ours, pair, teacher)),
            }
            clock.add(stored, measured)
        if clock.spent():
            break
    return clock.found


class Stored:
    """A teacher that reads a cache of hidden states, head on the device."""

    def __init__(self, cache: Any, device: torch.device, kind: Callable[..., Any]) -> None:
        self._cache, self._device, self._kind, self._head = cache, device, kind, None

    def read(self, keys: Sequence[bytes]) -> Any:
        """The signal of these rows on the device."""
        read = self._cache.batch(keys)
        self._head = self._head or read.head.to(self._device)
        return self._kind(read.hidden.to(self._device), self._head)

    def signal(self, batch: Batch) -> Any:
        """The signal of a batch."""
        from potstill.cache.keys import key_of
        from potstill.data.batch import readings

        return self.read([key_of(row.input_ids, row.scored) for row in readings(batch)])
