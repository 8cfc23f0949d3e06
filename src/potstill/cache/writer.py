"""Write a cache block by block. A kill at any instant loses at most the block in flight."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from potstill.cache import blocks, heads, index
from potstill.cache import header as headers
from potstill.cache.blocks import BlockHeader, Encoded
from potstill.cache.codecs import codec
from potstill.cache.files import Mapped
from potstill.cache.header import Header
from potstill.cache.index import Index
from potstill.errors import ArtifactError, CacheDamaged, MachineError
from potstill.signals.hidden import Hidden
from potstill.signals.signal import Signal
from potstill.store import disk

SHARD_BYTES = 128 * 2**20
log = logging.getLogger("potstill")


class Writer:
    """Appends blocks to the shards of one folder.

    Writers of other processes share the folder with other `part`s: each has shards of its own.

    Args:
        folder: is made where it is missing.
        header: what the cache says of itself.
        shard_bytes: a shard that has reached this size is followed by a new one.
        resume: go on behind the blocks that are there; without it a folder with blocks is refused.
        part: this writer's number among the parallel ones.

    Raises:
        ArtifactError: the folder holds another cache, or another process writes this part.
        CacheDamaged: a block other than the last is not as it was written.
    """

    def __init__(
        self,
        folder: str | Path,
        header: Header,
        *,
        shard_bytes: int = SHARD_BYTES,
        resume: bool = True,
        part: int = 0,
    ) -> None:
        self.folder, self.part = Path(folder), part
        self.folder.mkdir(parents=True, exist_ok=True)
        self.header = completed(header)
        self._shard_bytes = shard_bytes
        self._lock = lock_part(self.folder, part)
        self._written: set[bytes] = set()
        self._shard, self._place, self._size = part << 16, 0, 0  # the last shard, its next block, its bytes
        self._file: IO[bytes] | None = None
        try:
            self._describe()
            self._recover(resume)
        except BaseException:
            self.close()
            raise

    @property
    def written(self) -> frozenset[bytes]:
        """The keys in whole blocks on disk, of this part."""
        return frozenset(self._written)

    def __contains__(self, key: bytes) -> bool:
        return key in self._written

    def add_block(self, entries: Sequence[tuple[bytes, Signal]]) -> None:
        """Append examples, each its key and the signal of its scored positions; when this returns they are on disk.

        An example that is there already is left out.

        Raises:
            MachineError: the disk is full; the block is not written, and none before it is harmed.
            SignalError: a signal cannot be stored as this kind.
        """
        new = {key: signal for key, signal in reversed(entries) if key not in self._written}
        if not new:
            return
        ordered = [(key, new.pop(key)) for key, _ in entries if key in new]
        self.keep_head(ordered[0][1])
        made = [encoded(self.header, key, signal) for key, signal in ordered]
        if self._size >= self._shard_bytes:
            self._next_shard()
        self._append(blocks.pack_block(self._place, made))
        self._place += 1
        self._written.update(key for key, _ in ordered)

    def finish(self) -> Mapping[str, Any]:
        """Write the index over the shards of all parts, and count what is there. The writer is closed.

        The files are the same bytes after any number of interruptions.
        """
        self.close()
        numbers = sorted(blocks.shard_number(file.name) for file in self.folder.glob("shard-*.bin"))
        made = Index.of(entry for number in numbers for entry in self._scanned(number, content=False))
        temporary = self.folder / f".{index.NAME}.{os.getpid()}.tmp"
        with disk.naming(temporary):
            temporary.write_bytes(made.to_bytes())
        disk.move_into_place(temporary, self.folder / index.NAME)
        stored = int(made.entries["bytes"].astype(np.int64).sum())
        return {
            "examples": len(made.entries),
            "tokens": made.tokens,
            "blocks": len(made.blocks),
            "shards": len(numbers),
            "bytes": sum((self.folder / blocks.shard_name(number)).stat().st_size for number in numbers),
            "bytes_per_token": round(stored / max(1, made.tokens), 3),
        }

    def close(self) -> None:
        """Release the files; blocks that are written stay."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ── the folder ────────────────────────────────────────────────────────────────────────────────

    def _describe(self) -> None:
        place = self.folder / headers.NAME
        if not place.is_file():
            disk.write_text(place, self.header.to_json())
            return
        there = Header.from_json(place.read_bytes(), str(place))
        if different := there.differences(self.header):
            raise ArtifactError(
                f"{self.folder} holds another cache: {'; '.join(different)}.",
                fix="Give this one a folder of its own, or delete the old one.",
            )

    @property
    def headless(self) -> bool:
        """Whether hidden states are here without the head that reads them."""
        lacking = not (self.folder / heads.CHECK).is_file()
        return self.header.kind == "hidden" and lacking and bool(self._written)

    def keep_head(self, signal: Signal) -> None:
        """Keep the head of the first hidden states: they mean nothing without it."""
        place = self.folder / heads.CHECK
        if self.header.kind != "hidden" or place.is_file() or not isinstance(signal, Hidden):
            return
        content = heads.content_of(signal.head)
        temporary = self.folder / f".{heads.NAME}.{os.getpid()}.tmp"
        with disk.naming(temporary):
            temporary.write_bytes(content)
        disk.move_into_place(temporary, self.folder / heads.NAME)
        disk.write_text(place, heads.check_of(content))

    # ── blocks ────────────────────────────────────────────────────────────────────────────────────

    def _scanned(self, number: int, *, content: bool) -> Iterator[tuple[int, int, BlockHeader, np.ndarray]]:
        data = Mapped(self.folder / blocks.shard_name(number))
        blocks.require_shard(data, number, self.header.version)
        for offset, header, directory in blocks.scan(data, number, content=content):
            yield number, offset, header, directory

    def _recover(self, resume: bool) -> None:
        """Take over the blocks that are there; half a block at the end of the last shard is cut off."""
        files = sorted(self.folder.glob(f"shard-{self.part:05d}-*.bin"))
        if files and not resume:
            raise ArtifactError(
                f"{self.folder} holds blocks already.", fix="Delete it, or go on with resume."
            )
        for file in files:
            self._shard, self._place, self._size = blocks.shard_number(file.name), 0, 0
            try:
                for _, offset, header, directory in self._scanned(self._shard, content=file == files[-1]):
                    self._place, self._size = header.number + 1, offset + header.bytes
                    self._written.update(key.tobytes() for key in directory["key"])
            except CacheDamaged as error:
                if file != files[-1]:
                    raise
                log.warning("%s is cut off at its last whole block: %s", file, error.message)
                self._take_back(file)

    def _next_shard(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._shard, self._place, self._size = None, self._shard + 1, 0, 0

    def _append(self, block: bytes) -> None:
        place = self.folder / blocks.shard_name(self._shard)
        (self.folder / index.NAME).unlink(missing_ok=True)  # it knows nothing of what follows
        new = self._size == 0
        content = blocks.shard_header(self._shard) + block if new else block
        try:
            if self._file is None:
                self._file = place.open("wb" if new else "ab", buffering=0)
            _write_all(self._file, content)
            os.fsync(self._file.fileno())
            if new:
                _sync_folder(self.folder)
        except OSError as error:
            self._take_back(place)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise MachineError(
                    f"there is no room for {len(content)} bytes more in {place}.",
                    fix="Free space and run the same command again: whole blocks are kept.",
                ) from error
            raise
        self._size += len(content)

    def _take_back(self, place: Path) -> None:
        """Remove what a failed write has left."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._size:
            os.truncate(place, self._size)
        else:
            place.unlink(missing_ok=True)


def completed(header: Header) -> Header:
    """A header with all of its codec's setting."""
    return Header(
        header.kind, codec(header.kind).check(header.setting), header.teacher, header.vocabulary, header.facts
    )


def encoded(header: Header, key: bytes, signal: Signal) -> Encoded:
    """One example as a block of the cache holds it.

    Raises:
        SignalError: the signal cannot be stored as this kind.
    """
    kind = codec(header.kind)
    fields = kind.encode(signal, header.setting, key, header.vocabulary)
    return Encoded(key, signal.rows, blocks.pack_fields(fields, kind.FIELDS))


def lock_part(folder: Path, part: int) -> IO[str]:
    """Hold a part of a cache until the file is closed.

    Raises:
        ArtifactError: another process holds it.
    """
    handle = (folder / f".part-{part:05d}.lock").open("a")
    if not disk.lock(handle):
        handle.close()
        raise ArtifactError(
            f"another process writes part {part} of {folder}.", fix="Wait for it, or stop it."
        )
    return handle


def _write_all(file: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
