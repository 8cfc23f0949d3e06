"""Read a cache: any example by its key, many at once, every byte compared with its checksum before it is used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from potstill.cache import blocks, heads, index
from potstill.cache import header as headers
from potstill.cache.blocks import Bytes
from potstill.cache.codecs import Codec, Context, Entry, codec
from potstill.cache.files import Folder, Mapped, Remote
from potstill.cache.header import Header
from potstill.cache.index import Index
from potstill.cache.keys import all_but_first, key_of
from potstill.errors import CacheDamaged, CacheMiss, PotstillError
from potstill.signals.signal import Signal
from potstill.types import Head

FETCHED = 64 * 2**20  # bytes of remote blocks that are kept


@dataclass(frozen=True)
class Coverage:
    """How many of the wanted examples are there."""

    held: int
    wanted: int

    @property
    def share(self) -> float:
        return self.held / self.wanted if self.wanted else 1.0


class Cache:
    """An open cache. `open` makes one; several threads may read it."""

    def __init__(
        self,
        folder: Folder,
        header: Header,
        found: Index,
        head: Head | None,
        complete: bool,
        given: Head | None,
    ) -> None:
        self.header, self.complete = header, complete
        self._given = given
        self._folder, self._index = folder, found
        self._codec: Codec = codec(header.kind)
        self._context = Context(header.vocabulary, head)
        self._shards: dict[int, Mapped | Remote] = {}
        self._whole = np.zeros(len(found.blocks), bool)  # blocks that were compared with their checksums
        self._fetched: OrderedDict[int, Bytes] = OrderedDict()
        self._lock = threading.RLock()

    @staticmethod
    def open(path: str | Path, *, head: Head | None = None) -> Cache:
        """Open a finished or a partial cache: a folder, or a URL that fsspec reads. Nothing big is read.

        Args:
            head: reads hidden states in place of the stored head, which is then not loaded.

        Raises:
            ArtifactError: it is no cache, or of a version that is not read here.
            CacheDamaged: its header, head or index is not as it was written.
        """
        folder = Folder(path)
        header = Header.from_json(folder.read(headers.NAME), f"{folder.name}/{headers.NAME}")
        names = folder.names()
        complete = index.NAME in names
        found = (
            Index.from_bytes(folder.read(index.NAME)) if complete else index.scanned(folder, names, header)
        )
        kept = head
        if header.kind == "hidden" and head is None and heads.NAME in names:
            kept = heads.read_head(folder)
        return Cache(folder, header, found, kept, complete, head)

    def __reduce__(self) -> Any:
        """Another process, such as a worker of a DataLoader, opens the files itself."""
        return _opened, (self._folder.absolute, self._given)

    # ── examples ──────────────────────────────────────────────────────────────────────────────────

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._index.entries)

    def __contains__(self, key: bytes) -> bool:
        return self._index.find(key) is not None

    def keys(self) -> Iterable[bytes]:
        """The keys of all examples, ascending."""
        return (key.tobytes() for key in self._index.entries["key"])

    def tokens(self, key: bytes) -> int:
        """How many positions of an example are stored.

        Raises:
            CacheMiss: it is not there.
        """
        return int(self._index.entries["tokens"][self._require(key)])

    def signal(self, ids: Sequence[int], scored: Sequence[bool] | None = None) -> Signal:
        """The signal of an example's scored positions.

        Args:
            ids: all of the example's.
            scored: which of them are targets; all but the first when not given, as of a text without a prompt.

        Raises:
            CacheMiss: it is not there; names what can be the cause.
            CacheDamaged: its block is not as it was written.
        """
        marks = all_but_first(ids) if scored is None else scored
        place = self._index.find(key_of(ids, marks))
        if place is None:
            which = " (all but the first: pass scored for others)" if scored is None else ""
            count = f"{sum(map(bool, marks))} scored positions{which}"
            raise self._miss(f"no example of {len(ids)} ids that begins {list(ids[:8])} with {count}")
        return self._decoded([place])

    def batch(self, keys: Sequence[bytes]) -> Signal:
        """The signals of several examples, joined in the order of their keys; a key may come twice.

        Raises:
            CacheMiss: one is not there.
            CacheDamaged: a block is not as it was written.
        """
        return self._decoded([self._require(key) for key in keys])

    def coverage(self, keys: Iterable[bytes]) -> Coverage:
        """How many of these examples the cache holds."""
        wanted = set(keys)
        return Coverage(sum(key in self for key in wanted), len(wanted))

    def require_teacher(self, fingerprint: str) -> None:
        """Refuse a cache of another teacher.

        Raises:
            CacheMiss: names both.
        """
        if fingerprint != self.header.teacher:
            raise CacheMiss(
                f"{self._folder.name} holds signals of the teacher {self.header.teacher}, not of {fingerprint}.",
                fix="Capture this teacher: its weights, adapter, number format and head are part of its fingerprint.",
            )

    # ── the whole ─────────────────────────────────────────────────────────────────────────────────

    def stats(self) -> dict[str, Any]:
        """What is there: counts, bytes, and the header's facts."""
        found = self._index
        stored = int(found.entries["bytes"].astype(np.int64).sum())
        return {
            "kind": self.header.kind,
            "setting": dict(self.header.setting),
            "teacher": self.header.teacher,
            "vocabulary": self.header.vocabulary,
            "version": ".".join(map(str, self.header.version)),
            "complete": self.complete,
            "examples": len(found.entries),
            "tokens": found.tokens,
            "blocks": len(found.blocks),
            "shards": len(np.unique(found.blocks["shard"])),
            "bytes": int(found.blocks["bytes"].sum()),
            "bytes_per_token": round(stored / max(1, found.tokens), 3),
            "facts": dict(self.header.facts),
        }

    def verify(self) -> list[str]:
        """Read everything and list all damage, a sentence each."""
        damages: list[str] = []
        for number in range(len(self._index.blocks)):
            try:
                self._block(number, again=True)
            except PotstillError as error:
                damages.append(error.message)
        damages += self._unlisted()
        for place in range(len(self._index.entries)):
            if self._whole[self._index.entries["block"][place]]:
                try:
                    self._decoded([place])
                except (PotstillError, ValueError, RuntimeError, IndexError) as error:
                    damages.append(f"an entry of {self._where(place)} cannot be read: {error}")
        return damages

    # ── bytes ─────────────────────────────────────────────────────────────────────────────────────

    def _decoded(self, places: Sequence[int]) -> Signal:
        entries = []
        for place in places:
            row = self._index.entries[place]
            payload = self._payload(int(row["block"]), int(row["offset"]), int(row["bytes"]))
            fields = blocks.unpack_fields(payload, self._codec.FIELDS)
            entries.append(Entry(int(row["tokens"]), fields))
        return self._codec.decode(entries, self.header.setting, self._context)

    def _payload(self, number: int, offset: int, size: int) -> Bytes:
        with self._lock:
            data = self._block(number)
            if data is None:
                return self._shard(int(self._index.blocks["shard"][number]))[offset : offset + size]
            start = offset - int(self._index.blocks["offset"][number])
            return memoryview(data)[start : start + size]

    def _block(self, number: int, *, again: bool = False) -> Bytes | None:
        """Compare a block with its checksums, once; a remote block's bytes are returned and kept for a while."""
        row = self._index.blocks[number]
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["bytes"])
        data = self._shard(shard)
        local = isinstance(data, Mapped)
        if self._whole[number] and not again:
            if local:
                return None
            if number in self._fetched:
                self._fetched.move_to_end(number)
                return self._fetched[number]
        where = blocks.block_name(shard, int(row["number"]))
        if offset + size > len(data):
            raise CacheDamaged(f"{where} is cut off: it ends beyond the file.", block=where)
        content = memoryview(data[offset : offset + size])
        header = blocks.read_header(content, 0, where)
        if (header.number, header.bytes) != (int(row["number"]), size):
            raise CacheDamaged(f"{where} is damaged: it is another block.", block=where)
        blocks.read_directory(content, 0, header, where)
        blocks.require_payload(content, 0, header, where)
        self._whole[number] = True
        if local:
            return None
        self._fetched[number] = content
        while len(self._fetched) > 1 and sum(map(len, self._fetched.values())) > FETCHED:
            self._fetched.popitem(last=False)
        return content

    def _shard(self, number: int) -> Mapped | Remote:
        if number not in self._shards:
            name = blocks.shard_name(number)
            try:
                data = self._folder.open(name)
            except FileNotFoundError as error:
                raise CacheDamaged(f"{name} is missing.", block=name) from error
            blocks.require_shard(data, number, self.header.version)
            self._shards[number] = data
        return self._shards[number]

    def _unlisted(self) -> list[str]:
        """Bytes behind the last block that is known."""
        damages = []
        found = self._index.blocks
        for number in sorted(blocks.shard_number(n) for n in self._folder.names() if n.startswith("shard-")):
            end = int((found["offset"] + found["bytes"])[found["shard"] == number].max(initial=0))
            size = len(self._folder.open(blocks.shard_name(number)))
            if size > end:
                damages.append(
                    f"{blocks.shard_name(number)} holds {size - end} bytes behind its last whole block."
                )
        return damages

    def _where(self, place: int) -> str:
        row = self._index.blocks[int(self._index.entries["block"][place])]
        return blocks.block_name(int(row["shard"]), int(row["number"]))

    # ── misses ────────────────────────────────────────────────────────────────────────────────────

    def _require(self, key: bytes) -> int:
        place = self._index.find(key)
        if place is None:
            raise self._miss(f"no example with the key {key.hex()}")
        return place

    def _miss(self, what: str) -> CacheMiss:
        facts: Mapping[str, Any] = self.header.facts
        made = [f"{name} {facts[name]}" for name in ("template", "tokenizer", "data") if name in facts]
        partial = "" if self.complete else "The cache is partial: its capture was not finished. "
        return CacheMiss(
            f"{self._folder.name} holds {what}. {partial}It was made by the teacher {self.header.teacher}"
            f"{' with ' + ', '.join(made) if made else ''}.",
            fix="Another chat template, tokenizer, truncation or choice of scored positions makes other ids: "
            "undo that change, or capture these rows.",
        )


def _opened(path: str, head: Head | None) -> Cache:
    return Cache.open(path, head=head)
