"""What the kinds of stored ids share: sets of ids, quantised log-probabilities, tail masses, entropies."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache import bits
from potstill.cache.blocks import Fields
from potstill.cache.codecs import Entry
from potstill.errors import SignalError

TAIL_STEP = 4000.0  # a tail of mass m is stored as round(-4000 log m): to 0.013 %
NO_TAIL = 65535
PLAIN, DEFLATED = (
    np.array([0], np.uint8),
    np.array([1], np.uint8),
)  # how codes of log-probabilities are stored
EXACT = 32  # bits of a log-probability that is stored as a float


@dataclass(frozen=True)
class Sets:
    """Ids and log-probabilities of n positions, end to end; ids ascend within each position."""

    counts: np.ndarray  # [n] int64
    ids: np.ndarray  # [m] int64
    lp: np.ndarray  # [m] float64

    @staticmethod
    def of(ids: Tensor, lp: Tensor, used: Tensor) -> Sets:
        """From padded rows [n, k]."""
        beyond = torch.where(used, ids, torch.iinfo(torch.int64).max)
        order = beyond.argsort(-1)
        used, ids, lp = used.gather(-1, order), ids.gather(-1, order), lp.gather(-1, order)
        mask = used.cpu().numpy()
        return Sets(mask.sum(1), ids.cpu().numpy()[mask], lp.double().cpu().numpy()[mask])

    def mass(self, temperature: float = 1.0) -> np.ndarray:
        """Sum of exp(lp / T) of each position, [n] float64."""
        return sums(np.exp(self.lp / temperature), self.counts)


def sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over the parts of `values`, [n]."""
    # reduceat takes no empty part: an added zero ends the last, and empty ones are set to 0.
    total = np.add.reduceat(np.append(values, 0.0), bits.starts_of(counts)) if len(counts) else np.zeros(0)
    return np.where(counts > 0, total, 0.0)


def padded(values: np.ndarray, counts: np.ndarray, filler: float, dtype: np.dtype | type) -> Tensor:
    """Rows of different lengths as [n, most], unused places last."""
    most = max(1, int(counts.max(initial=0)))
    out = np.full((len(counts), most), filler, dtype)
    out[np.arange(most) < counts[:, None]] = values
    return torch.from_numpy(out)


# ── counts ────────────────────────────────────────────────────────────────────────────────────────


def count_type(most: int) -> np.dtype:
    """The type of the numbers of ids of a position, where there are at most so many."""
    return np.dtype("u1") if most < 2**8 else np.dtype("<u2") if most < 2**16 else np.dtype("<u4")


def raw(values: np.ndarray) -> np.ndarray:
    """The bytes of an array, [bytes] uint8."""
    return np.ascontiguousarray(values).view(np.uint8).ravel()


def column(entries: Sequence[Entry], name: str, dtype: np.dtype | type) -> np.ndarray:
    """A field of several entries, end to end."""
    parts = [entry.fields[name] for entry in entries]
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint8)).view(dtype)


def tokens_of(entries: Sequence[Entry]) -> np.ndarray:
    """Positions of each entry, [entries] int64."""
    return np.array([entry.tokens for entry in entries], np.int64)


def read_ids(
    entries: Sequence[Entry], names: tuple[str, str, str], most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts [n] and ids [m] of several entries; `names` are the fields of counts and of both streams."""
    counts = column(entries, names[0], count_type(most)).astype(np.int64)
    rows = tokens_of(entries)
    unary, plain = ([entry.fields[name] for entry in entries] for name in names[1:])
    return counts, bits.decode_sets(unary, plain, counts, rows)


# ── log-probabilities ─────────────────────────────────────────────────────────────────────────────


def store_lp(lp: np.ndarray, width: int) -> Fields:
    """Log-probabilities of one entry: floats, or multiples of a step that reaches its least one."""
    if width == EXACT:
        return {"step": np.zeros(0, np.uint8), "values": raw(lp.astype("<f4"))}
    step = np.float32(max(0.0, float(-lp.min(initial=0.0))) / (2**width - 1))
    codes = np.rint(-lp / np.float64(step)) if step > 0 else np.zeros(len(lp))
    codes = codes.clip(0, 2**width - 1).astype(np.uint32)
    packed = _packed(codes, width)
    if width <= 8 and len(deflated := _deflated(codes)) < len(packed):
        return {"step": raw(np.array([step], "<f4")), "values": np.concatenate([DEFLATED, deflated])}
    return {"step": raw(np.array([step], "<f4")), "values": np.concatenate([PLAIN, packed])}


def _packed(codes: np.ndarray, width: int) -> np.ndarray:
    return raw(codes.astype("<u2")) if width == 16 else bits.pack(codes, np.full(len(codes), width))


def _deflated(codes: np.ndarray) -> np.ndarray:
    """A byte a code, in the shortest codes of Huffman; repetitions do not pay."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return np.frombuffer(coder.compress(codes.astype(np.uint8).tobytes()) + coder.flush(), np.uint8)


def _codes(entries: Sequence[Entry], width: int, numbers: np.ndarray) -> np.ndarray:
    """The codes of several entries, end to end."""
    parts = []
    for entry, number in zip(entries, numbers.tolist(), strict=True):
        values = entry.fields["values"]
        if values[0] == DEFLATED[0]:
            parts.append(np.frombuffer(zlib.decompress(values[1:].tobytes(), -15), np.uint8))
        elif width in (8, 16):
            parts.append(values[1:].view(f"<u{width // 8}"))
        else:
            parts.append(bits.unpack(values[1:], np.arange(number) * width, width))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def read_lp(entries: Sequence[Entry], width: int, counts: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """The stored log-probabilities, [m] float32; what was rounded is shifted so that a position has 1 - its tail."""
    if width == EXACT:
        return column(entries, "values", np.dtype("<f4")).astype(np.float32)
    rows = tokens_of(entries)
    numbers = sums(counts, rows).astype(np.int64)
    codes = _codes(entries, width, numbers)
    if len(codes) != int(counts.sum()):
        raise ValueError(f"there are {len(codes)} log-probabilities for {int(counts.sum())} ids")
    steps = column(entries, "step", np.dtype("<f4"))
    lp = codes.astype(np.float32) * np.repeat(-steps, numbers)
    mass = np.maximum(sums(np.exp(lp), counts), 1e-30)
    # A tail that rounds to 1, of a nearly even distribution, says nothing of what is left.
    known = tails < 1.0
    shift = np.where(known, np.log1p(-np.where(known, tails, 0.0)) - np.log(mass), 0.0)
    lp += np.repeat(shift.astype(np.float32), counts)
    return np.minimum(lp, 0.0, out=lp)


def store_tail(mass: np.ndarray) -> np.ndarray:
    """Tail masses as codes, [n] uint16; what is below 1e-7 is none."""
    mass = np.clip(mass, 0.0, 1.0 - 1e-9)
    codes = np.rint(-TAIL_STEP * np.log(np.maximum(mass, 1e-30)))
    return np.where(mass < 1e-7, NO_TAIL, codes).astype("<u2")


def read_tail(codes: np.ndarray) -> np.ndarray:
    """Tail masses, [n] float64."""
    return np.where(codes == NO_TAIL, 0.0, np.exp(codes.astype(np.float64) / -TAIL_STEP))


# ── entropies ─────────────────────────────────────────────────────────────────────────────────────


def store_entropy(entropy: np.ndarray, vocabulary: int) -> np.ndarray:
    """Entropies in nats as multiples of log(V) / 65535, [n] uint16."""
    return np.rint(entropy / math.log(max(2, vocabulary)) * 65535).clip(0, 65535).astype("<u2")


def read_entropy(entries: Sequence[Entry], vocabulary: int) -> Tensor:
    """Entropies in nats, [n] float32."""
    codes = column(entries, "entropy", np.dtype("<u2"))
    return torch.from_numpy((codes * (math.log(max(2, vocabulary)) / 65535)).astype(np.float32))


def require(kind: str, setting: dict[str, Any], **ranges: tuple[float, float]) -> dict[str, Any]:
    """Refuse numbers of a setting that are out of their range.

    Raises:
        SignalError: names the first.
    """
    for name, (low, high) in ranges.items():
        value = setting[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise SignalError(
                f"{name} of a cache of the kind {kind} is {value!r}.",
                fix=f"Give a number from {low:g} to {high:g}.",
            )
    return setting
