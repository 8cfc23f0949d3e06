"""A teacher that is asked once about a row: what it said is written to a cache, and read from there again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from potstill.cache.codecs import Context, Entry, codec
from potstill.cache.header import Header
from potstill.cache.prefetch import Ahead
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.data.batch import readings, rows_of
from potstill.errors import ArtifactError
from potstill.signals.hidden import Hidden
from potstill.signals.signal import Signal
from potstill.teachers.cached import keys_of, reading_of
from potstill.types import Batch, Example, Head

MOST_PARTS = 4096


class Remembering:
    """A live teacher with a cache of its final hidden states, in fp16.

    A signal is always given as the cache holds it, also the first time: a training that goes on after an
    interruption, and one that finds the cache of another, see the same numbers. Processes and runs that share the
    folder write parts of their own, and read each other's from the next epoch on. A student's text is written down
    where it is trained on again, which `remember` says.

    Args:
        live: whom to ask about a row that is not in the cache.
        folder: of the cache.
        vocabulary: ids of the teacher.
    """

    def __init__(self, live: Any, folder: Path, vocabulary: int) -> None:
        dtype = str(getattr(live, "dtype", torch.float32)).removeprefix("torch.")
        self.fingerprint = f"{live.fingerprint} kept as hidden fp16"
        self._live = live
        self._header = Header("hidden", {"format": "fp16", "dtype": dtype}, live.fingerprint, vocabulary)
        self._folder = folder
        self._writer: Writer | None = None
        self._cache: Cache | None = None
        self._head: Head | None = None
        self._ahead: Ahead[Any] = Ahead(lambda keys: self._opened().batch(keys))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._live, name)

    def expect(self, batches: Iterable[Sequence[Example]]) -> None:
        """An epoch begins: what all processes have written is looked up, and read ahead."""
        self._cache = None
        coming = (keys_of(map(reading_of, rows)) for rows in batches)
        held = self._opened()
        self._ahead.expect(keys for keys in coming if keys and all(key in held for key in keys))

    def signal(self, batch: Batch) -> Signal:
        """The signal for the N scored positions; that of text which a student wrote just now is not written down."""
        rows = [row for row in rows_of(batch) if row.count]
        return self._signal(batch, {key for row in rows if row.hard.any() for key in keys_of(readings(row))})

    def remember(self, batch: Batch) -> Signal:
        """The signal of rows that return, whoever wrote them."""
        return self._signal(batch, {*keys_of(readings(batch))})

    def _signal(self, batch: Batch, lasting: Collection[bytes]) -> Signal:
        keys = keys_of(readings(batch))
        if not keys:
            return self._live.signal(batch)
        if self._writer is not None and any(
            key in self._writer and key not in self._opened() for key in keys
        ):
            self._cache = None
        held, device = self._opened(), batch.input_ids.device
        missing = {key for key in keys if key not in held}
        if not missing:
            signal: Any = self._ahead.take(keys)
            return self._on(device, signal.hidden, signal.head)
        said = self._asked(batch, missing, lasting)
        parts: list[Any] = [said[key] if key in said else held.batch([key]) for key in keys]
        return self._on(device, torch.cat([part.hidden for part in parts]), parts[0].head)

    def close(self) -> None:
        """Let go of the cache's files and of the teacher's resources; a later call takes them up again."""
        self._ahead.close()
        if self._writer is not None:
            self._writer.close()
        self._writer = self._cache = None
        self._live.close()

    def _asked(
        self, batch: Batch, missing: Collection[bytes], lasting: Collection[bytes]
    ) -> dict[bytes, Hidden]:
        """What the teacher says of rows that are not there, as the cache gives it back; of `lasting` ones it is written
        down."""
        rows = [row for row in rows_of(batch) if row.count]
        keys = [key for row in rows for key in keys_of(readings(row))]
        if len(missing) == len(set(keys)):  # of a whole batch at once
            signal = self._live.signal(batch)
            parts = signal.hidden.split([row.count for row in rows])
            said = {key: Hidden(part, signal.head) for key, part in zip(keys, parts, strict=True)}
        else:
            said = {
                key: self._live.signal(row) for key, row in zip(keys, rows, strict=True) if key in missing
            }
        writer = self._writing()
        writer.add_block([(key, signal) for key, signal in said.items() if key in lasting])
        return {key: self._as_stored(key, signal, writer.header) for key, signal in said.items()}

    @staticmethod
    def _as_stored(key: bytes, signal: Hidden, header: Header) -> Hidden:
        kind, setting, vocabulary = codec("hidden"), header.setting, header.vocabulary
        entry = Entry(signal.rows, kind.encode(signal, setting, key, vocabulary))
        return kind.decode([entry], setting, Context(vocabulary, signal.head))  # type: ignore[return-value]

    def _opened(self) -> Cache:
        if self._cache is None:
            self._writing()
            self._cache = Cache.open(self._folder)
        return self._cache

    def _writing(self) -> Writer:
        if self._writer is None:
            self._writer = _free_part(self._folder, self._header)
        return self._writer

    def _on(self, device: torch.device, hidden: torch.Tensor, head: Head) -> Hidden:
        if self._head is None:
            self._head = head.to(device)
        return Hidden(hidden.to(device), self._head)


def _free_part(folder: Path, header: Header) -> Writer:
    """A writer of the first part that no other process writes."""
    for part in range(MOST_PARTS):
        try:
            return Writer(folder, header, part=part)
        except ArtifactError as error:
            if "another process" not in error.message:
                raise
    raise ArtifactError(f"{MOST_PARTS} processes write {folder}.", fix="Wait for one of them.")
