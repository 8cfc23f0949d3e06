"""The bytes of a shard: a header, then blocks. A block holds whole examples and the checksums of all its bytes.

    shard   magic "PSCACHE\\0", u16 major, u16 minor, u32 id; then blocks
    block   40 bytes of header, a directory of 24 bytes an entry, the entries' payloads
    entry   u32 length of each of the codec's fields, then the fields

All numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from potstill.cache.header import MAJOR, MINOR
from potstill.errors import CacheDamaged

Bytes: TypeAlias = bytes | memoryview
Fields: TypeAlias = Mapping[str, np.ndarray]  # name -> [bytes] uint8


class Shard(Protocol):
    """The bytes of a shard, wherever they are; a slice may be a view."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Bytes: ...


SHARD = struct.Struct("<8sHHI")
SHARD_MAGIC = b"PSCACHE\0"
BLOCK = struct.Struct("<4sIIIQIIII")
BLOCK_MAGIC = b"PSBK"
DIRECTORY = np.dtype([("key", "V16"), ("tokens", "<u4"), ("bytes", "<u4")])
LARGEST = 2**32 - 1  # bytes of an entry


@dataclass(frozen=True)
class Encoded:
    """One example as a block holds it."""

    key: bytes
    tokens: int
    payload: bytes


@dataclass(frozen=True)
class BlockHeader:
    """The first 40 bytes of a block."""

    number: int  # in its shard, from 0
    entries: int
    tokens: int
    payload_bytes: int
    directory_check: int  # crc32
    payload_check: int

    @property
    def directory_bytes(self) -> int:
        return self.entries * DIRECTORY.itemsize

    @property
    def bytes(self) -> int:
        """Of the whole block."""
        return BLOCK.size + self.directory_bytes + self.payload_bytes


def shard_name(number: int) -> str:
    """The file of a shard; its number is part * 2^16 + its place in the part."""
    return f"shard-{number >> 16:05d}-{number & 0xFFFF:05d}.bin"


def shard_number(name: str) -> int:
    """The number of a shard's file."""
    _, part, place = name.removesuffix(".bin").split("-")
    return int(part) << 16 | int(place)


def shard_header(number: int, version: tuple[int, int] = (MAJOR, MINOR)) -> bytes:
    """The first 16 bytes of a shard."""
    return SHARD.pack(SHARD_MAGIC, *version, number)


def pack_fields(fields: Fields, order: Sequence[str]) -> bytes:
    """An entry's payload.

    Raises:
        ValueError: it has 4 GB or more.
    """
    parts = [np.ascontiguousarray(fields[name]).view(np.uint8).tobytes() for name in order]
    if sum(map(len, parts)) + 4 * len(parts) > LARGEST:
        raise ValueError("one example's signal has 4 GB or more.")
    return struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts)


class Unpacked(Mapping[str, np.ndarray]):
    """The fields of an entry, views that are made when they are asked for: a waiting entry is small."""

    __slots__ = ("_order", "_payload")

    def __init__(self, payload: Bytes, order: Sequence[str]) -> None:
        self._payload, self._order = payload, order

    def __getitem__(self, name: str) -> np.ndarray:
        place, count = self._order.index(name), len(self._order)
        lengths = struct.unpack_from(f"<{count}I", self._payload)
        return np.frombuffer(self._payload, np.uint8, lengths[place], 4 * count + sum(lengths[:place]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def unpack_fields(payload: Bytes, order: Sequence[str]) -> Fields:
    """The fields of an entry, views of its payload."""
    return Unpacked(payload, order)


def pack_block(number: int, entries: Sequence[Encoded]) -> bytes:
    """A block of whole examples."""
    rows = [(entry.key, entry.tokens, len(entry.payload)) for entry in entries]
    directory = np.array(rows, DIRECTORY).tobytes()
    payload = b"".join(entry.payload for entry in entries)
    tokens = sum(entry.tokens for entry in entries)
    sums = zlib.crc32(directory), zlib.crc32(payload)
    head = BLOCK.pack(BLOCK_MAGIC, number, len(entries), tokens, len(payload), *sums, 0, 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(head)) + directory + payload


def read_header(data: Shard, offset: int, where: str) -> BlockHeader:
    """The header of the block at `offset` of a shard's bytes.

    Raises:
        CacheDamaged: it is cut off, or not as it was written.
    """
    if offset + BLOCK.size > len(data):
        raise CacheDamaged(f"{where} is cut off: its header ends beyond the file.", block=where)
    raw = data[offset : offset + BLOCK.size]
    magic, number, entries, tokens, size, of_directory, of_payload, _, check = BLOCK.unpack(raw)
    if magic != BLOCK_MAGIC or zlib.crc32(raw[:-4]) != check:
        raise CacheDamaged(f"{where} is damaged: its header is not as it was written.", block=where)
    header = BlockHeader(number, entries, tokens, size, of_directory, of_payload)
    if offset + header.bytes > len(data):
        raise CacheDamaged(f"{where} is cut off: it ends {offset + header.bytes - len(data)} bytes beyond the file.", block=where)  # fmt: skip
    return header


def read_directory(data: Shard, offset: int, header: BlockHeader, where: str) -> np.ndarray:
    """The directory of a block.

    Raises:
        CacheDamaged: it is not as it was written.
    """
    start = offset + BLOCK.size
    raw = data[start : start + header.directory_bytes]
    if zlib.crc32(raw) != header.directory_check:
        raise CacheDamaged(f"{where} is damaged: its directory is not as it was written.", block=where)
    return np.frombuffer(raw, DIRECTORY)


def require_payload(data: Shard, offset: int, header: BlockHeader, where: str) -> None:
    """Compare a block's payload with its checksum.

    Raises:
        CacheDamaged: it is not as it was written.
    """
    start = offset + BLOCK.size + header.directory_bytes
    if zlib.crc32(data[start : start + header.payload_bytes]) != header.payload_check:
        raise CacheDamaged(f"{where} is damaged: its content is not as it was written.", block=where)


def require_shard(data: Shard, number: int, version: tuple[int, int]) -> None:
    """Compare a shard's first bytes with what they must be.

    Raises:
        CacheDamaged: they are others.
    """
    if bytes(data[: SHARD.size]) != shard_header(number, version):
        name = shard_name(number)
        raise CacheDamaged(f"{name} is damaged: its first bytes are not as they were written.", block=name)


def scan(data: Shard, number: int, *, content: bool) -> Iterator[tuple[int, BlockHeader, np.ndarray]]:
    """Each block of a shard: its offset, header and directory; with `content` its payload is compared as well.

    Raises:
        CacheDamaged: names the first block that is cut off or damaged.
    """
    offset, place = SHARD.size, 0
    while offset < len(data):
        where = block_name(number, place)
        header = read_header(data, offset, where)
        if header.number != place:
            raise CacheDamaged(f"{where} is damaged: it says that it is block {header.number}.", block=where)
        directory = read_directory(data, offset, header, where)
        if content:
            require_payload(data, offset, header, where)
        yield offset, header, directory
        offset, place = offset + header.bytes, place + 1


def block_name(shard: int, place: int) -> str:
    """A block as messages name it."""
    return f"block {place} of {shard_name(shard)}"
