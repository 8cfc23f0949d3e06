"""Final hidden states: exact to rounding for every divergence and every temperature.

`fp16` keeps 11 bits of each value. `int8` keeps, for each group of 32 neighbours, their least value and a step
in fp16 and 8 bits a value. An example with values beyond fp16's range is divided by a power of two, which loses
nothing but the smallest values, and that power stands beside it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.blocks import Fields
from potstill.cache.codecs import Context, Entry, completed
from potstill.errors import SignalError
from potstill.signals.hidden import Hidden

FIELDS = ("scale", "values", "steps")
FORMATS = ("fp16", "int8")
GROUP = 32
LARGEST = 60000.0  # of a group's least value and range; fp16 ends at 65504
log = logging.getLogger("potstill")


def check(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a setting: `format` on disk, `width` H, and `dtype` of what is read."""
    whole = completed("hidden", setting, {"format": "fp16", "dtype": "float32"})
    if whole["format"] not in FORMATS:
        raise SignalError(
            f"hidden states have no format {whole['format']!r}.", fix=f"Use {' or '.join(FORMATS)}."
        )
    return whole


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
    hidden = signal.hidden.detach().float().cpu()
    scale = _scale(hidden)
    if scale != 1.0:
        _warn(scale)
        hidden = hidden / scale
    width = np.array([hidden.shape[1]], "<u4")
    fields = {"scale": np.concatenate([np.array([scale], "<f4").view(np.uint8), width.view(np.uint8)])}
    if setting["format"] == "fp16":
        return fields | {
            "values": hidden.half().numpy().view(np.uint8).ravel(),
            "steps": np.zeros(0, np.uint8),
        }
    codes, least, step = _quantised(hidden)
    steps = torch.stack([least, step], -1)  # [N, groups, 2] fp16
    return fields | {"values": codes.numpy().ravel(), "steps": steps.numpy().view(np.uint8).ravel()}


def decode(entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> Hidden:
    """The hidden states of several examples and the head that reads them."""
    if context.head is None:
        raise SignalError(
            "hidden states need a head.", fix="Open the cache with head=…, or keep its head's file."
        )
    dtype = getattr(torch, setting["dtype"])
    parts = [_decoded(entry, setting["format"]).to(dtype) for entry in entries]
    width = context.head.weight.shape[1] if context.head.weight is not None else 0
    return Hidden(torch.cat(parts) if parts else torch.zeros(0, width, dtype=dtype), context.head)


def _decoded(entry: Entry, stored: str) -> Tensor:
    """[N, H] float32."""
    scale = float(entry.fields["scale"][:4].view("<f4")[0])
    width = int(entry.fields["scale"][4:8].view("<u4")[0])
    if stored == "fp16":
        half = _tensor(entry.fields["values"], torch.float16)
        hidden = half.view(entry.tokens, width).float()
    else:
        codes = _tensor(entry.fields["values"], torch.uint8).view(entry.tokens, width)
        groups = -(-width // GROUP)
        steps = _tensor(entry.fields["steps"], torch.float16).view(entry.tokens, groups, 2).float()
        hidden = _restored(codes, steps[..., 0], steps[..., 1])
    return hidden if scale == 1.0 else hidden * scale


@cache
def _warn(scale: float) -> None:
    """Once for each scale, however many examples have it."""
    log.warning("hidden states beyond fp16's range are stored divided by %g", scale)


def _tensor(raw: np.ndarray, dtype: torch.dtype) -> Tensor:
    # A copy: the bytes are read-only, and may belong to a mapped file.
    return torch.from_numpy(raw.copy()).view(dtype) if len(raw) else torch.zeros(0, dtype=dtype)


def _scale(hidden: Tensor) -> float:
    """A power of two that brings all values into fp16's range; 1 for nearly all models."""
    if not hidden.numel():
        return 1.0
    largest = float(hidden.abs().max())
    if not math.isfinite(largest):
        row = int((~hidden.isfinite()).any(-1).nonzero()[0, 0])
        raise SignalError(
            f"the teacher's hidden state at scored position {row} is not finite.",
            fix="Load the teacher in bfloat16 or float32.",
        )
    return 1.0 if largest <= LARGEST / 2 else 2.0 ** math.ceil(math.log2(largest / (LARGEST / 2)))


def _grouped(hidden: Tensor) -> Tensor:
    """[N, groups, 32]; the last group is filled up with its last value."""
    missing = -hidden.shape[1] % GROUP
    if missing:
        hidden = torch.cat([hidden, hidden[:, -1:].expand(-1, missing)], -1)
    return hidden.view(hidden.shape[0], -1, GROUP)


def _quantised(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, H] uint8, and each group's least value and step in fp16, as they are used when they are read."""
    groups = _grouped(hidden)
    least, most = groups.amin(-1), groups.amax(-1)
    least_half = least.half()
    step_half = ((most - least_half.float()) / 255).clamp(min=0).half()
    step = step_half.float().unsqueeze(-1)
    codes = (groups - least_half.float().unsqueeze(-1)) / torch.where(step > 0, step, 1.0)
    codes = codes.round_().clamp_(0, 255).to(torch.uint8)
    return codes.reshape(hidden.shape[0], -1)[:, : hidden.shape[1]].contiguous(), least_half, step_half


def _restored(codes: Tensor, least: Tensor, step: Tensor) -> Tensor:
    width = codes.shape[1]
    codes = torch.nn.functional.pad(codes, (0, -width % GROUP))
    groups = codes.view(codes.shape[0], -1, GROUP).float()
    groups.mul_(step.unsqueeze(-1)).add_(least.unsqueeze(-1))
    return groups.view(codes.shape)[:, :width]
