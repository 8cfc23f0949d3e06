"""The log-probability of each scored token: 4 bytes a position, 2 as fp16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, _sets, completed
from potstill.errors import SignalError
from potstill.signals.given import Given

FIELDS = ("lp",)
FORMATS: dict[str, np.dtype] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting: `format` fp32 or fp16."""
    whole = completed("token", setting, {"format": "fp32"})
    if whole["format"] not in FORMATS:
        raise SignalError(
            f"log-probabilities of tokens have no format {whole['format']!r}.",
            fix=f"Use {' or '.join(FORMATS)}.",
        )
    return whole


def encode(signal: Given, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields:
    """The fields of one example.

    Raises:
        SignalError: it is another signal, or a value is no log-probability.
    """
    if not isinstance(signal, Given):
        raise SignalError(f"a {signal.kind} signal cannot be stored as token: pass Given(lp).")
    lp = signal.lp.detach().float().cpu().numpy()
    if not (np.isfinite(lp) & (lp <= 1e-3)).all():
        raise SignalError(f"{lp[~(np.isfinite(lp) & (lp <= 1e-3))][0]:g} is no log-probability of a token.")
    return {"lp": _sets.raw(np.minimum(lp, 0.0).astype(FORMATS[setting["format"]]))}


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> Given:
    """Several examples, in fp32."""
    return Given(torch.from_numpy(_sets.column(entries, "lp", FORMATS[setting["format"]]).astype(np.float32)))
