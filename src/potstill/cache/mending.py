"""Put a part of a cache in order block by block: what is whole stays where it is, what is damaged is written again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from potstill.cache import blocks
from potstill.cache.files import Mapped
from potstill.cache.header import Header
from potstill.cache.writer import encoded, lock_part
from potstill.errors import CacheDamaged
from potstill.store import disk


class Mender:
    """Walks the first shard of a part, whose blocks are told one after the other.

    A capture's blocks depend on its plan alone, so a block that is made again has the bytes that it had where the
    teacher says the same again. An engine, or another GPU, rounds otherwise, and the codes of its values are longer or
    shorter: what stands behind such a block moves, and nothing of it is overwritten.

    Raises:
        ArtifactError: another process writes this part.
    """

    def __init__(self, folder: Path, header: Header, part: int) -> None:
        self._header, self._shard, self._place = header, part << 16, 0
        self._path = folder / blocks.shard_name(self._shard)
        self._lock = lock_part(folder, part)
        self._offset = blocks.SHARD.size
        try:
            self._file = self._path.open("r+b", buffering=0)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Mender:
        try:
            _put(self._file, 0, blocks.shard_header(self._shard, self._header.version))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file.fileno())
        finally:
            self._close()

    def _close(self) -> None:
        self._file.close()
        self._lock.close()

    def holds(self, keys: Sequence[bytes]) -> bool | None:
        """Whether the next block is whole and of these examples, and then go behind it; None at the file's end.

        Half a block at the end is cut off, as by a writer.
        """
        data = Mapped(self._path)
        if self._offset + blocks.BLOCK.size > len(data):
            os.truncate(self._path, min(self._offset, len(data)))
            return None
        name = blocks.block_name(self._shard, self._place)
        try:
            header = blocks.read_header(data, self._offset, name)
            directory = blocks.read_directory(data, self._offset, header, name)
            blocks.require_payload(data, self._offset, header, name)
        except CacheDamaged:
            return False
        if header.number != self._place or [key.tobytes() for key in directory["key"]] != list(keys):
            return False
        self._offset, self._place = self._offset + header.bytes, self._place + 1
        return True

    def put(self, entries: Sequence[tuple[bytes, Any]]) -> str:
        """Write the next block again, and go behind it; its name."""
        made = [encoded(self._header, key, signal) for key, signal in entries]
        block = blocks.pack_block(self._place, made)
        following = self._following(Mapped(self._path))
        if following is None or _fits(self._offset + len(block), self._place, *following):
            _put(self._file, self._offset, block)
        else:
            self._insert(block, following[0])
        name = blocks.block_name(self._shard, self._place)
        self._offset, self._place = self._offset + len(block), self._place + 1
        return name

    def _following(self, data: Mapped) -> tuple[int, int] | None:
        """Where the next block with a whole header stands that belongs behind the one to be made, and its number."""
        offset = self._offset
        while (offset := data.find(blocks.BLOCK_MAGIC, offset)) >= 0:
            try:
                header = blocks.read_header(data, offset, "")
            except CacheDamaged:
                offset += 1
                continue
            if header.number > self._place:
                return offset, header.number
            offset += header.bytes
        return None

    def _insert(self, block: bytes, following: int) -> None:
        """Write the block in place of all that stands before `following`, in a file that replaces the shard."""
        data, temporary = Mapped(self._path), self._path.with_name(f".{self._path.name}.tmp")
        with disk.naming(temporary), temporary.open("wb") as file:
            for part in (data[: self._offset], block, data[following:]):
                file.write(part)
        disk.move_into_place(temporary, self._path)
        self._file.close()
        self._file = self._path.open("r+b", buffering=0)

    def end(self) -> None:
        """Cut off what stands behind the last block."""
        os.truncate(self._path, self._offset)


def _fits(end: int, place: int, following: int, number: int) -> bool:
    """Whether a block up to `end` leaves the blocks between it and the following one their room."""
    return end == following if number == place + 1 else end <= following


def _put(file: Any, offset: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file.fileno(), view, offset)
        view, offset = view[written:], offset + written
