"""Stored examples that stay as bytes until a chunk of them is compared: a batch takes as much memory as it takes disk."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from potstill.cache.codecs import Entry
from potstill.divergences._divergence import Divergence
from potstill.signals.signal import Chunk, Chunks, Signal
from potstill.signals.support import Tail
from potstill.types import Head


@dataclass(frozen=True)
class Packed:
    """Examples one after the other, and how they are read."""

    entries: tuple[Entry, ...]
    read: Callable[[Sequence[Entry]], Any]

    kind: ClassVar[str] = ""
    estimated: ClassVar[bool] = False

    @property
    def rows(self) -> int:
        return sum(entry.tokens for entry in self.entries)

    @property
    def bytes(self) -> int:
        """What it holds in memory, or of a mapped file."""
        return sum(field.nbytes for entry in self.entries for field in entry.fields.values())

    def whole(self) -> Any:
        """All of it, read: a signal in tensors."""
        return self.read(self.entries)

    def at(self, rows: Tensor) -> Signal:
        # What is asked for by indices of a device is read there.
        return moved(self.whole(), rows.device).at(rows)

    def chunks(self, divergence: Divergence, tail: Tail) -> Chunks:
        """As those of the signal that is read, one chunk at a time."""
        divergence.require_support(self.kind)
        return _Chunks(self, divergence, tail)


class PackedTopK(Packed):
    """Reads as `TopK`."""

    kind: ClassVar[str] = "topk"


class PackedSampled(Packed):
    """Reads as `Sampled`."""

    kind: ClassVar[str] = "sampled"
    estimated: ClassVar[bool] = True


class _Chunks:
    """Reads the examples that a chunk touches; those of the last one are kept for the next."""

    def __init__(self, packed: Packed, divergence: Divergence, tail: Tail) -> None:
        self._packed, self._divergence, self._tail = packed, divergence, tail
        self._ends = list(accumulate(entry.tokens for entry in packed.entries))
        self._held: tuple[int, int] = (0, 0)
        self._signal: Any = None

    def __call__(self, rows: slice, student_logits: Tensor) -> Chunk:
        first = bisect_right(self._ends, rows.start)
        last = bisect_left(self._ends, rows.stop) + 1
        if self._signal is None or self._held != (first, last):
            self._signal = self._packed.read(self._packed.entries[first:last])
            self._held = (first, last)
        begin = self._ends[first - 1] if first else 0
        part = self._signal.at(slice(rows.start - begin, rows.stop - begin))
        chunks = moved(part, student_logits.device).chunks(self._divergence, self._tail)
        return chunks(slice(0, rows.stop - rows.start), student_logits)


def moved(signal: Any, device: torch.device) -> Any:
    """A signal with its tensors and its head on a device."""
    values: dict[str, Any] = {}
    for field in fields(signal):
        value = getattr(signal, field.name)
        if isinstance(value, Tensor | Head):
            values[field.name] = value.to(device)
        elif isinstance(value, Mapping):
            values[field.name] = {key: tensor.to(device) for key, tensor in value.items()}
    return replace(signal, **values)
