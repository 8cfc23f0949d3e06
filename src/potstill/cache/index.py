"""Where each example is: every block and every entry, sorted by key.

    "PSINDEX\\0", u16 major, u16 minor, u32 0, u64 blocks, u64 entries, u64 tokens (40 bytes)
    blocks   32 bytes each: u32 shard, u32 number, u64 offset, u64 bytes, u32 entries, u32 tokens
    entries  40 bytes each: 16 bytes of key, u64 offset of the payload in its shard, u32 bytes, u32 tokens, u32 block, u32 0
    u32      crc32 of all before

A cache without this file is partial: its blocks are scanned instead.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from potstill.cache.blocks import BLOCK, BlockHeader, require_shard, scan, shard_name, shard_number
from potstill.cache.files import Folder
from potstill.cache.header import MAJOR, MINOR, Header
from potstill.errors import CacheDamaged

NAME = "index.bin"
MAGIC = b"PSINDEX\0"
HEAD = struct.Struct("<8sHHIQQQ")
BLOCKS = np.dtype(
    [
        ("shard", "<u4"),
        ("number", "<u4"),
        ("offset", "<u8"),
        ("bytes", "<u8"),
        ("entries", "<u4"),
        ("tokens", "<u4"),
    ]
)
ENTRIES = np.dtype(
    [
        ("key", "V16"),
        ("offset", "<u8"),
        ("bytes", "<u4"),
        ("tokens", "<u4"),
        ("block", "<u4"),
        ("zero", "<u4"),
    ]
)


@dataclass(frozen=True)
class Index:
    """All blocks in order, and all entries by ascending key."""

    blocks: np.ndarray  # [blocks] of BLOCKS
    entries: np.ndarray  # [entries] of ENTRIES

    def __post_init__(self) -> None:
        object.__setattr__(self, "_starts", _starts(self.entries))

    @staticmethod
    def of(scanned: Iterable[tuple[int, int, BlockHeader, np.ndarray]]) -> Index:
        """The index of scanned blocks: (shard, offset, header, directory). The first entry of a key counts."""
        blocks, entries = [], []
        for number, (shard, offset, header, directory) in enumerate(scanned):
            blocks.append((shard, header.number, offset, header.bytes, header.entries, header.tokens))
            part = np.zeros(len(directory), ENTRIES)
            for name in ("key", "bytes", "tokens"):
                part[name] = directory[name]
            sizes = directory["bytes"].astype(np.int64)
            part["offset"] = offset + BLOCK.size + header.directory_bytes + np.cumsum(sizes) - sizes
            part["block"] = number
            entries.append(part)
        every = np.concatenate(entries) if entries else np.zeros(0, ENTRIES)
        order = np.argsort(_sortable(every), kind="stable")
        every = every[order]
        keys = _sortable(every)
        first = np.ones(len(every), bool)
        first[1:] = keys[1:] != keys[:-1]
        return Index(np.array(blocks, BLOCKS), every[first])

    @property
    def tokens(self) -> int:
        return int(self.entries["tokens"].sum())

    def find(self, key: bytes) -> int | None:
        """The number of the entry of a key, None where there is none."""
        start = int.from_bytes(key[:8], "big")
        place = int(np.searchsorted(self._starts, np.uint64(start)))  # type: ignore[attr-defined]
        while place < len(self.entries) and (held := self.entries["key"][place].tobytes())[:8] == key[:8]:
            if held == key:
                return place
            place += 1
        return None

    def to_bytes(self) -> bytes:
        """The content of the index's file."""
        head = HEAD.pack(MAGIC, MAJOR, MINOR, 0, len(self.blocks), len(self.entries), self.tokens)
        content = head + self.blocks.tobytes() + self.entries.tobytes()
        return content + struct.pack("<I", zlib.crc32(content))

    @staticmethod
    def from_bytes(content: bytes) -> Index:
        """Read the index's file.

        Raises:
            CacheDamaged: it is not as it was written.
        """
        fix = f"Copy it again, or delete {NAME} where no manifest lists it: the blocks are read instead."
        if len(content) < HEAD.size + 4 or zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
            raise CacheDamaged(f"{NAME} is damaged: its checksum differs.", block=NAME, fix=fix)
        magic, _, _, _, blocks, entries, _ = HEAD.unpack_from(content)
        middle = HEAD.size + blocks * BLOCKS.itemsize
        if magic != MAGIC or middle + entries * ENTRIES.itemsize + 4 != len(content):
            raise CacheDamaged(f"{NAME} is no index of {blocks} blocks.", block=NAME, fix=fix)
        return Index(
            np.frombuffer(content, BLOCKS, blocks, HEAD.size),
            np.frombuffer(content, ENTRIES, entries, middle),
        )


def _sortable(entries: np.ndarray) -> np.ndarray:
    """Keys that numpy compares byte by byte, without dropping zeros at their ends."""
    halves = np.ascontiguousarray(entries["key"]).view(">u8").reshape(-1, 2)
    keys = np.empty(len(entries), [("high", "<u8"), ("low", "<u8")])
    keys["high"], keys["low"] = halves[:, 0], halves[:, 1]
    return keys


def _starts(entries: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_sortable(entries)["high"])


def scanned(folder: Folder, names: Iterable[str], header: Header) -> Index:
    """The index of a cache that was not finished: its whole blocks, without half a last one of each part."""
    every = []
    numbers = sorted(shard_number(name) for name in names if name.startswith("shard-"))
    for number in numbers:
        data = folder.open(shard_name(number))
        last = number + 1 not in numbers
        try:
            require_shard(data, number, header.version)
            for found in scan(data, number, content=False):
                every.append((number, *found))
        except CacheDamaged:
            if not last:
                raise
    return Index.of(every)
