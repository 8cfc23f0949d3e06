"""The most bytes that a kind of cache can take, before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.cache import bits
from potstill.cache.blocks import DIRECTORY
from potstill.cache.codecs import _sets, _values, codec

_STARTS = 16  # bytes with which the fields of a row begin: steps, orders, scales


def most_bytes(
    kind: str, setting: Mapping[str, Any], *, tokens: int, rows: int = 0, vocabulary: int, width: int
) -> int:
    """The most bytes of `rows` entries with so many positions in all. Of `hidden`, `kl_vector` and `token` every
    position takes as much; of stored ids most take far less.

    Args:
        kind, setting: as `potstill.cache.codecs` knows them, the setting complete.
        vocabulary: ids that the teacher knows.
        width: values of the teacher's hidden state, of `kl_vector` those of the student's.
    """
    per_row = DIRECTORY.itemsize + 4 * len(codec(kind).FIELDS) + _STARTS
    return -(-tokens * _bits_of(kind, setting, vocabulary, width) // 8) + rows * per_row


def _bits_of(kind: str, setting: Mapping[str, Any], vocabulary: int, width: int) -> int:
    """Most bits of a position."""
    match kind:
        case "hidden":
            return _vector(setting["format"], width)
        case "kl_vector":
            return _vector(setting["format"], width) + 2 * 32
        case "token":
            return 32 if setting["format"] == "fp32" else 16
        case "topk":
            return _likeliest(setting, vocabulary) + 16 * (1 + len(setting["temperatures"]))
        case "sampled":
            return _drawn(setting, vocabulary) + 16
    assert kind == "topk_sampled", kind
    return _likeliest(setting, vocabulary) + _drawn(setting, vocabulary) + 16 + 16


def _vector(form: str, width: int) -> int:
    groups = -(-width // _values.GROUP)
    return 16 * width if form == "fp16" else 8 * width + 32 * groups


def _likeliest(setting: Mapping[str, Any], vocabulary: int) -> int:
    """Ids with log-probabilities: no more than have a probability above the threshold."""
    threshold = setting["threshold"]
    above = max(1, int(1 / threshold)) if threshold > 0 else vocabulary
    most = min(setting["most"], above, vocabulary)
    return 8 * _sets.count_type(setting["most"]).itemsize + most * (_id(vocabulary) + setting["bits"])


def _drawn(setting: Mapping[str, Any], vocabulary: int) -> int:
    """Drawn ids, each another one, and how often each was drawn in unary."""
    draws = setting["draws"]
    return 8 * _sets.count_type(draws).itemsize + min(draws, vocabulary) * _id(vocabulary) + draws


def _id(vocabulary: int) -> int:
    """Most bits of an id in the largest order of the code; the order that is taken makes all of them shorter."""
    order = bits.ORDERS[-1]
    width = (vocabulary - 1 + (1 << order)).bit_length() - 1
    return width + width - order + 1
