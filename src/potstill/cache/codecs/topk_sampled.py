"""The likeliest ids exactly, and unbiased draws from the rest: the best per byte for forward KL.

Ids with p > threshold, at most `most` of them, are stored as `topk` stores them. Of the rest, whose mass is m,
round(m draws) ids are drawn, one at least, and stand for m / round(m draws) each: a small tail costs little. All
weights of a position sum to 1 and their expectation is the teacher, so it reads as a `Sampled` signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from potstill.cache import bits
from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, _sets, completed
from potstill.cache.codecs._sets import Sets
from potstill.cache.codecs.sampled import entropy_of
from potstill.cache.codecs.topk import kept, require_bits
from potstill.cache.packed import PackedSampled
from potstill.cache.probabilities import draw, pieces, uniforms
from potstill.signals.sampled import Sampled
from potstill.signals.signal import Signal

DRAWN = ("drawn", "drawn_unary", "drawn_plain")
FIELDS = ("counts", "unary", "plain", "step", "values", "tails", *DRAWN, "times", "entropy")
DEFAULTS = {"threshold": 0.02, "most": 16, "bits": 16, "draws": 50, "temperature": 1.0}


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting: the exact ids as those of `topk`, `draws` for a tail of mass 1, at `temperature`."""
    whole = completed("topk_sampled", setting, DEFAULTS)
    ranges = {"threshold": (0, 1), "most": (1, 2**16), "draws": (1, 65535), "temperature": (1e-3, 1e3)}
    return require_bits("topk_sampled", _sets.require("topk_sampled", whole, **ranges))


def encode(signal: Signal, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields:
    """The fields of one example, from whole distributions."""
    uniform = uniforms(key, signal.rows)
    parts = [
        _encoded(at(setting["temperature"]), setting, uniform[rows])
        for rows, at in pieces(signal, vocabulary)
    ]
    none = np.zeros(0, np.int64)
    columns = zip(*parts, strict=True) if parts else [[none]] * 8
    counts, ids, lp, tails, drawn, drawn_ids, times, entropy = (np.concatenate(one) for one in columns)
    unary, plain = bits.encode_sets(ids, counts, vocabulary)
    drawn_unary, drawn_plain = bits.encode_sets(drawn_ids, drawn, vocabulary)
    return {
        "counts": _sets.raw(counts.astype(_sets.count_type(setting["most"]))),
        "unary": unary,
        "plain": plain,
        **_sets.store_lp(lp, setting["bits"]),
        "tails": _sets.raw(_sets.store_tail(tails)),
        "drawn": _sets.raw(drawn.astype(_sets.count_type(setting["draws"]))),
        "drawn_unary": drawn_unary,
        "drawn_plain": drawn_plain,
        "times": bits.encode_runs(times),
        "entropy": _sets.raw(_sets.store_entropy(entropy, vocabulary)),
    }


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> PackedSampled:
    """Several examples, read when they are compared."""
    return PackedSampled(tuple(entries), partial(_read, setting, context.vocabulary))


def _encoded(lp: torch.Tensor, setting: Mapping[str, Any], uniform: np.ndarray) -> tuple[np.ndarray, ...]:
    """Counts, ids, log-probabilities and tails of the exact ids; counts, ids and times of the drawn; entropies."""
    ids, values, used = kept(lp, setting["threshold"], setting["most"])
    head = Sets.of(ids, values, used)
    rest = lp.exp().scatter_reduce_(1, ids, torch.where(used, 0.0, 1.0), "prod")
    # The stored mass decides, since the reader divides by it.
    tails = _sets.read_tail(_sets.store_tail(rest.sum(-1, dtype=torch.float64).cpu().numpy()))
    draws = np.where(tails > 0, np.maximum(1, np.rint(tails * setting["draws"])), 0)
    drawn, drawn_ids, times = draw(rest, torch.from_numpy(draws).long().to(lp.device), uniform)
    return head.counts, head.ids, head.lp, tails, drawn, drawn_ids, times, entropy_of(lp)


def _read(setting: Mapping[str, Any], vocabulary: int, entries: Sequence[Entry]) -> Sampled:
    counts, ids = _sets.read_ids(entries, FIELDS[:3], setting["most"])
    tails = _sets.read_tail(_sets.column(entries, "tails", np.dtype("<u2")))
    weights = np.exp(_sets.read_lp(entries, setting["bits"], counts, tails))
    drawn, drawn_ids = _sets.read_ids(entries, DRAWN, setting["draws"])
    numbers = _sets.sums(drawn, _sets.tokens_of(entries)).astype(np.int64)
    times = bits.unary_runs([entry.fields["times"] for entry in entries], numbers)
    each = tails / np.maximum(1.0, _sets.sums(times, drawn))
    drawn_weights = times * np.repeat(each, drawn)
    return Sampled(
        torch.cat(
            [_sets.padded(ids, counts, -1, np.int64), _sets.padded(drawn_ids, drawn, -1, np.int64)], -1
        ),
        torch.cat(
            [_sets.padded(weights, counts, 0, np.float32), _sets.padded(drawn_weights, drawn, 0, np.float32)],
            -1,
        ),
        _sets.read_entropy(entries, vocabulary),
        setting["temperature"],
    )
