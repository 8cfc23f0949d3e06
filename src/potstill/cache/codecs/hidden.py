"""Final hidden states: exact to rounding for every divergence and every temperature.

`fp16` keeps 11 bits of each value, `int8` 8 bits and the range of each group of 32 neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, _values, completed
from potstill.errors import SignalError
from potstill.signals.hidden import Hidden

FIELDS = _values.FIELDS


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting: `format` on disk, `width` H, and `dtype` of what is read."""
    whole = completed("hidden", setting, {"format": "fp16", "dtype": "float32"})
    return _values.require_format("hidden states", whole)


def encode(signal: Hidden, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields:
    """The fields of one example.

    Raises:
        SignalError: it is another signal, of another vocabulary, or a hidden state is not finite.
    """
    if not isinstance(signal, Hidden):
        raise SignalError(f"a {type(signal).__name__} signal cannot be stored as hidden states.")
    if signal.head.vocabulary != vocabulary:
        raise SignalError(
            f"the teacher's head knows {signal.head.vocabulary} ids, the cache is for {vocabulary}."
        )
    return _values.stored(signal.hidden, setting["format"], "hidden state")


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> Hidden:
    """The hidden states of several examples and the head that reads them."""
    if context.head is None:
        raise SignalError(
            "hidden states need a head.", fix="Open the cache with head=…, or keep its head's file."
        )
    dtype = getattr(torch, setting["dtype"])
    parts = [_values.read(entry, setting["format"]).to(dtype) for entry in entries]
    width = context.head.weight.shape[1] if context.head.weight is not None else 0
    return Hidden(torch.cat(parts) if parts else torch.zeros(0, width, dtype=dtype), context.head)
