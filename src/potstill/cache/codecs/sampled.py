"""Ids drawn from the teacher with their counts: unbiased for every loss that is linear in the teacher.

Draws are systematic and seeded by the example's key, see `potstill.cache.probabilities`. The teacher's entropy at the
temperature of the draws stands beside them, so that a KL can be reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache import bits
from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, _sets, completed
from potstill.cache.packed import PackedSampled
from potstill.cache.probabilities import draw, is_whole, pieces, uniforms
from potstill.errors import SignalError
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal

FIELDS = ("counts", "unary", "plain", "times", "entropy")
DEFAULTS = {"draws": 50, "temperature": 1.0}


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting: `draws` of each position, at `temperature`."""
    whole = completed("sampled", setting, DEFAULTS)
    return _sets.require("sampled", whole, draws=(1, 65535), temperature=(1e-3, 1e3))


def encode(signal: Signal, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields:
    """The fields of one example, from whole distributions or from ids that were drawn already."""
    drawn = _drawn(signal, setting, key, vocabulary) if is_whole(signal) else _given(signal, setting)
    counts, ids, times, entropy = drawn
    unary, plain = bits.encode_sets(ids, counts, vocabulary)
    return {
        "counts": _sets.raw(counts.astype(_sets.count_type(setting["draws"]))),
        "unary": unary,
        "plain": plain,
        "times": bits.encode_runs(times),
        "entropy": _sets.raw(_sets.store_entropy(entropy, vocabulary)),
    }


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> PackedSampled:
    """Several examples, read when they are compared."""
    return PackedSampled(tuple(entries), partial(_read, setting, context.vocabulary))


def entropy_of(lp: Tensor) -> np.ndarray:
    """H(p) of log-probabilities [n, V] in nats, [n] float64."""
    return -torch.where(lp > float("-inf"), lp.exp() * lp, 0.0).sum(-1).double().cpu().numpy()


def _drawn(
    signal: Signal, setting: Mapping[str, Any], key: bytes, vocabulary: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    uniform = uniforms(key, signal.rows)
    parts: list[tuple[np.ndarray, ...]] = []
    for rows, at in pieces(signal, vocabulary):
        lp = at(setting["temperature"])
        number = torch.full((lp.shape[0],), setting["draws"], device=lp.device)
        parts.append((*draw(lp.exp(), number, uniform[rows]), entropy_of(lp)))
    if not parts:
        none = np.zeros(0, np.int64)
        return none, none, none, np.zeros(0)
    counts, ids, times, entropy = (np.concatenate(column) for column in zip(*parts, strict=True))
    return counts, ids, times, entropy


def _given(
    signal: Signal, setting: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not isinstance(signal, Sampled):
        raise SignalError(f"a {signal.kind} signal cannot be stored as sampled.")
    checked = signal.checked()
    whole = checked.counts.double().round()
    if signal.temperature != setting["temperature"] or signal.entropy is None or not bool((checked.counts == whole).all()):  # fmt: skip
        raise SignalError(
            f"drawn ids are stored as whole counts at T={setting['temperature']}, with the teacher's entropy."
        )
    sets = _sets.Sets.of(checked.ids, whole, checked.ids >= 0)
    if int(_sets.sums(sets.lp, sets.counts).max(initial=0)) > setting["draws"]:
        raise SignalError(f"a position has more than {setting['draws']} draws.", fix="Raise draws.")
    return sets.counts, sets.ids, sets.lp.astype(np.int64), signal.entropy.double().cpu().numpy()


def _read(setting: Mapping[str, Any], vocabulary: int, entries: Sequence[Entry]) -> Sampled:
    counts, ids = _sets.read_ids(entries, FIELDS[:3], setting["draws"])
    numbers = _sets.sums(counts, _sets.tokens_of(entries)).astype(np.int64)
    times = bits.unary_runs([entry.fields["times"] for entry in entries], numbers)
    return Sampled(
        _sets.padded(ids, counts, -1, np.int64),
        _sets.padded(times, counts, 0, np.float32),
        _sets.read_entropy(entries, vocabulary),
        setting["temperature"],
    )
