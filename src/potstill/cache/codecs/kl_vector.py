"""The teacher's mean row of a frozen student head, softmax(z_T / T) W_S: exact to rounding for forward KL alone.

`head` is the sha256 of the head that the vectors were made with, which a training compares with its student's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, _sets, _values, completed
from potstill.errors import SignalError
from potstill.signals.vector import KlVector

FIELDS = (*_values.FIELDS, "shift", "entropy")
DEFAULTS = {"format": "fp16", "temperature": 1.0, "head": ""}
FLOAT = np.dtype("<f4")


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting: `format` on disk, `temperature`, and `head`, the sha256 of the student's head.

    Raises:
        SignalError: an option is unknown or out of range.
    """
    whole = _sets.require("kl_vector", completed("kl_vector", setting, DEFAULTS), temperature=(1e-3, 1e3))
    if not re.fullmatch("([0-9a-f]{64})?", whole["head"]):
        raise SignalError(
            f"head of a cache of the kind kl_vector is {whole['head']!r}.", fix="Give a sha256."
        )
    return _values.require_format("vectors", whole)


def encode(signal: KlVector, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields:
    """The fields of one example.

    Raises:
        SignalError: it is another signal, of another vocabulary or temperature, or a value is not finite.
    """
    if not isinstance(signal, KlVector):
        raise SignalError(
            f"a {type(signal).__name__} signal cannot be stored as kl_vector.",
            fix="Pass potstill.cache.vectors.vectors_of(signal, student_head).",
        )
    made, wanted = (signal.vocabulary, signal.temperature), (vocabulary, setting["temperature"])
    if made != wanted:
        raise SignalError(
            f"vectors over {made[0]} ids at T={made[1]} do not fit into a cache of {wanted[0]} ids at T={wanted[1]}."
        )
    return {
        **_values.stored(signal.vectors, setting["format"], "mean of the student's head"),
        "shift": _sets.raw(signal.shift.float().cpu().numpy().astype(FLOAT)),
        "entropy": _sets.raw(signal.entropy.float().cpu().numpy().astype(FLOAT)),
    }


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> KlVector:
    """Several examples, in fp32."""
    parts = [_values.read(entry, setting["format"]) for entry in entries]
    shift, entropy = (
        torch.from_numpy(_sets.column(entries, name, FLOAT).astype(np.float32)) for name in FIELDS[-2:]
    )
    vectors = torch.cat(parts) if parts else torch.zeros(0, 0)
    return KlVector(vectors, shift, entropy, context.vocabulary, setting["temperature"])
