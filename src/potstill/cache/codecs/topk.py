"""The likeliest ids: those with p > threshold, at most `most` of them, and the mass of the rest.

Log-probabilities are multiples of a step that is the example's own (`bits` 4 to 16), or floats (32). The tail's
mass stands beside them for T = 1 and each of `temperatures`, so that the log-sum-exp at those is exact for what is
read: sum over the ids of exp(lp / T) is 1 - tail of exp(lse).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache import bits
from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, _sets, completed
from potstill.cache.codecs._sets import Sets
from potstill.cache.packed import PackedTopK
from potstill.cache.probabilities import is_whole, pieces
from potstill.errors import SignalError
from potstill.signals.signal import Signal
from potstill.signals.support import NEG_INF
from potstill.signals.topk import TopK

FIELDS = ("counts", "unary", "plain", "step", "values", "tails")
DEFAULTS = {"threshold": 1e-3, "most": 128, "bits": 8, "temperatures": ()}


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting.

    Raises:
        SignalError: an option is unknown or out of range.
    """
    whole = completed("topk", setting, DEFAULTS)
    whole["temperatures"] = sorted({float(t) for t in whole["temperatures"]} - {1.0})
    if any(not t > 0 for t in whole["temperatures"]):
        raise SignalError("a temperature of a cache is above 0.")
    return require_bits("topk", _sets.require("topk", whole, threshold=(0, 1), most=(1, 2**20)))


def require_bits(kind: str, setting: dict[str, Any]) -> dict[str, Any]:
    if setting["bits"] not in (*range(4, 17), _sets.EXACT):
        raise SignalError(
            f"bits of a cache of the kind {kind} is {setting['bits']!r}.",
            fix="Give 4 to 16, or 32 for floats.",
        )
    return setting


def encode(signal: Signal, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields:
    """The fields of one example, from whole distributions or from ids that are stored already; what another cache
    holds with this setting is taken as it is.

    Raises:
        SignalError: the signal has no log-sum-exp at a temperature of the setting.
    """
    if isinstance(signal, PackedTopK):
        if len(signal.entries) == 1 and _setting_of(signal) == dict(setting):
            return signal.entries[0].fields
        signal = signal.whole()
    sets, tails = _of_whole(signal, setting, vocabulary) if is_whole(signal) else _of_stored(signal, setting)
    counts = sets.counts.astype(_sets.count_type(setting["most"]))
    unary, plain = bits.encode_sets(sets.ids, sets.counts, vocabulary)
    return {
        "counts": _sets.raw(counts),
        "unary": unary,
        "plain": plain,
        **_sets.store_lp(sets.lp, setting["bits"]),
        "tails": _sets.raw(np.stack([_sets.store_tail(mass) for mass in tails], -1)),
    }


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> PackedTopK:
    """Several examples, read when they are compared."""
    return PackedTopK(tuple(entries), partial(_read, setting, context.vocabulary))


def _setting_of(packed: PackedTopK) -> Mapping[str, Any] | None:
    """The setting with which examples were stored."""
    return dict(packed.read.args[0]) if isinstance(packed.read, partial) else None


def kept(lp: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest ids of whole distributions [n, V]: ids, log-probabilities and which are used, [n, k]."""
    top = lp.topk(min(most, lp.shape[1]), -1)
    used = top.values > (math.log(threshold) if threshold > 0 else NEG_INF)
    used[:, 0] = True
    widest = int(used.sum(-1).max())
    return top.indices[:, :widest], top.values[:, :widest], used[:, :widest]


def _of_whole(signal: Signal, setting: Mapping[str, Any], vocabulary: int) -> tuple[Sets, list[np.ndarray]]:
    parts: list[Sets] = []
    tails: list[list[np.ndarray]] = []
    for _, at in pieces(signal, vocabulary):
        whole = at(1.0)
        ids, lp, used = kept(whole, setting["threshold"], setting["most"])
        parts.append(Sets.of(ids, lp, used))
        inside = torch.zeros_like(whole, dtype=torch.bool).scatter_(1, ids, used)
        every = [whole, *map(at, setting["temperatures"])]
        tails.append([_mass_outside(one, inside) for one in every])
    if not parts:
        empty = np.zeros(0)
        return Sets(empty.astype(np.int64), empty.astype(np.int64), empty), [empty] * (
            1 + len(setting["temperatures"])
        )
    return (
        Sets(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("counts", "ids", "lp"))),
        [np.concatenate(column) for column in zip(*tails, strict=True)],
    )


def _mass_outside(lp: Tensor, inside: Tensor) -> np.ndarray:
    """The mass of the ids that are not stored, summed there: exact however small it is. [n] float64."""
    return lp.masked_fill(inside, NEG_INF).logsumexp(-1).exp().double().cpu().numpy()


def _of_stored(signal: Signal, setting: Mapping[str, Any]) -> tuple[Sets, list[np.ndarray]]:
    if not isinstance(signal, TopK):
        raise SignalError(f"a {signal.kind} signal cannot be stored as topk.")
    checked = signal.checked()
    sets = Sets.of(checked.ids, checked.lp, checked.ids >= 0)
    if int(sets.counts.max(initial=0)) > setting["most"]:
        raise SignalError(
            f"a position has {int(sets.counts.max())} ids, the cache holds {setting['most']} at most.",
            fix="Raise most, or give fewer.",
        )
    tails = [1.0 - sets.mass()]
    for t in setting["temperatures"]:
        if t not in checked.lse:
            raise SignalError(
                f"the signal has no log-sum-exp at T={t}.", fix="Give it, or leave the temperature out."
            )
        tails.append(1.0 - sets.mass(t) / np.exp(checked.lse[t].double().cpu().numpy()))
    return sets, tails


def _read(setting: Mapping[str, Any], vocabulary: int, entries: Sequence[Entry]) -> TopK:
    """Top-k targets in tensors."""
    counts, ids = _sets.read_ids(entries, FIELDS[:3], setting["most"])
    temperatures = (1.0, *setting["temperatures"])
    codes = _sets.column(entries, "tails", np.dtype("<u2")).reshape(-1, len(temperatures))
    lp = _sets.read_lp(entries, setting["bits"], counts, _sets.read_tail(codes[:, 0]))
    lse = {}
    for number, t in enumerate(setting["temperatures"], 1):
        mass = _sets.sums(np.exp(lp / np.float32(t)).astype(np.float64), counts)
        total = np.log(mass) - np.log1p(-_sets.read_tail(codes[:, number]))
        lse[t] = torch.from_numpy(total.astype(np.float32))
    padded = _sets.padded(ids, counts, -1, np.int64), _sets.padded(lp, counts, NEG_INF, np.float32)
    return TopK(*padded, lse, vocabulary)
