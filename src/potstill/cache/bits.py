"""Sets of ids and small numbers as bits, packed and unpacked many examples at a time.

A bit stream counts from the lowest bit of its first byte. The gaps between ascending ids are stored in exponential
Golomb codes of order q (Teuhola 1978): of g + 2^q, with m bits behind its first one, m - q in unary and those m bits
as they are. One stream holds the unary parts and another the rest, so that both are read without a loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.errors import SignalError

ORDERS = range(16)


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Where each part begins when parts of these lengths stand end to end, [n] int64."""
    counts = counts.astype(np.int64)
    return np.cumsum(counts) - counts


def inside(counts: np.ndarray) -> np.ndarray:
    """0, 1, … within each part, [sum of counts] int64."""
    return np.arange(int(counts.sum())) - np.repeat(starts_of(counts), counts)


def pack(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Numbers one behind the other, each in its width of bits."""
    widths = widths.astype(np.int64)
    begins = starts_of(widths)
    bits = np.zeros(int(widths.sum()), np.uint8)
    for bit in range(int(widths.max(initial=0))):
        there = widths > bit
        bits[begins[there] + bit] = (values[there] >> bit) & 1
    return np.packbits(bits, bitorder="little")


def unpack(raw: np.ndarray, begins: np.ndarray, widths: np.ndarray | int) -> np.ndarray:
    """The numbers that begin at these bits, [m] uint32; at most 25 bits each.

    Raises:
        ValueError: the stream ends before.
    """
    if not len(begins):
        return np.zeros(0, np.uint32)
    if int((begins + widths).max()) > 8 * len(raw):
        raise ValueError("a stream of bits ends before its last number")
    padded = np.zeros(len(raw) + 4, np.uint8)
    padded[: len(raw)] = raw
    # Every byte begins a 32-bit word here: one gather finds a number wherever it stands.
    words = np.ndarray((len(raw) + 1,), "<u4", padded.data, strides=(1,))
    found = words[begins >> 3]
    found >>= (begins & 7).astype(np.uint32)
    found &= (np.uint32(1) << np.asarray(widths, np.uint32)) - np.uint32(1)
    return found


def ones(raw: np.ndarray) -> np.ndarray:
    """The places of the set bits, [m] int64."""
    return np.flatnonzero(np.unpackbits(raw, bitorder="little"))


def from_ones(places: np.ndarray, length: int) -> np.ndarray:
    """A stream with these bits set."""
    bits = np.zeros(length, np.uint8)
    bits[places] = 1
    return np.packbits(bits, bitorder="little")


def joined(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The streams of several entries end to end, and the bit where each begins, [entries] int64."""
    whole = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return whole, 8 * starts_of(np.array([len(part) for part in parts]))


def encode_sets(ids: np.ndarray, counts: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """The unary and the plain stream of sets of ids: ascending in each set, sets end to end.

    The first byte of the plain stream is the order that makes both the shortest.

    Raises:
        SignalError: an id is not in the vocabulary.
    """
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        wrong = ids[(ids < 0) | (ids >= vocabulary)][0]
        raise SignalError(f"the signal holds id {wrong}, the teacher's vocabulary has {vocabulary} ids.")
    ids = ids.astype(np.int64)
    before = np.concatenate([[-1], ids[:-1]])[: len(ids)]
    before[starts_of(counts)[counts > 0]] = -1
    gaps = ids - before - 1
    order = min(ORDERS, key=lambda q: int(_behind_first(gaps + (1 << q)).sum()) * 2 - q * len(gaps))
    shifted = gaps + (1 << order)
    widths = _behind_first(shifted)
    plain = pack(shifted - (1 << widths), widths)
    return encode_runs(widths - order + 1), np.concatenate([np.array([order], np.uint8), plain])


def decode_sets(
    unary: Sequence[np.ndarray], plain: Sequence[np.ndarray], counts: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """The ids of several entries' sets, end to end.

    Args:
        unary, plain: the two streams of each entry.
        counts: ids of each set, [n] int64.
        rows: sets of each entry, [entries] int64.

    Raises:
        ValueError: a stream does not hold as many ids.
    """
    owner = np.repeat(np.arange(len(rows)), rows)
    numbers = np.bincount(owner, counts, minlength=len(rows)).astype(np.int64)
    orders = np.repeat(np.array([part[0] for part in plain], np.int64), numbers)
    widths = unary_runs(unary, numbers) - 1 + orders
    stream, begins = joined([part[1:] for part in plain])
    starts = starts_of(widths)
    first = starts_of(numbers)
    moved = begins - _at(starts, first)
    low = unpack(stream, starts + np.repeat(moved, numbers), widths)
    steps = (1 << widths) + low.astype(np.int64) - (1 << orders) + 1
    total = np.cumsum(steps)
    begin = starts_of(counts)
    offset = _at(total, begin) - _at(steps, begin) + 1
    total -= np.repeat(offset, counts)
    return total


def _at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The values at these places; at one behind the last, where an empty part stands, any."""
    return np.take(values, places, mode="clip") if len(values) else np.zeros(len(places), values.dtype)


def _behind_first(numbers: np.ndarray) -> np.ndarray:
    """How many bits of each positive number follow its first one."""
    return np.frexp(numbers.astype(np.float64))[1].astype(np.int64) - 1


def unary_runs(parts: Sequence[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """Numbers from 1 on that `encode_runs` has stored, [sum of counts] int64; `counts` are those of each entry.

    Raises:
        ValueError: a stream does not hold as many numbers.
    """
    stream, begins = joined(parts)
    places = ones(stream)
    if len(places) != int(counts.sum()):
        raise ValueError(f"a unary stream holds {len(places)} numbers, not {int(counts.sum())}")
    before = np.concatenate([[-1], places[:-1]]) if len(places) else places
    starts, some = starts_of(counts), counts > 0
    before[starts[some]] = begins[some] - 1
    return places - before


def encode_runs(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 1 on in unary: n - 1 zeros and a one."""
    ends = np.cumsum(numbers.astype(np.int64))
    return from_ones(ends - 1, int(ends[-1]) if len(ends) else 0)
