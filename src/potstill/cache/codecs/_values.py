"""Vectors of one width, a position each, as bytes and back.

`fp16` keeps 11 bits of each value. `int8` keeps, for each group of 32 neighbours, their least value and a step
in fp16 and 8 bits a value. An example with values beyond fp16's range is divided by a power of two, which loses
nothing but the smallest values, and that power stands beside it.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from potstill.cache.blocks import Fields
from potstill.cache.codecs import Entry
from potstill.errors import SignalError

FIELDS = ("scale", "values", "steps")
FORMATS = ("fp16", "int8")
GROUP = 32
LARGEST = 60000.0  # of a group's least value and range; fp16 ends at 65504
log = logging.getLogger("potstill")


def require_format(what: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Refuse a setting whose `format` there is not.

    Raises:
        SignalError: names those that there are.
    """
    if setting["format"] not in FORMATS:
        raise SignalError(f"{what} have no format {setting['format']!r}.", fix=f"Use {' or '.join(FORMATS)}.")
    return setting


def stored(values: Tensor, to: str, what: str) -> Fields:
    """The fields of vectors [N, H]; `what` names one in messages.

    Raises:
        SignalError: a value is not finite.
    """
    values = values.detach().float().cpu()
    scale = _scale(values, what)
    if scale != 1.0:
        _warn(scale)
        values = values / scale
    width = np.array([values.shape[1]], "<u4")
    fields = {"scale": np.concatenate([np.array([scale], "<f4").view(np.uint8), width.view(np.uint8)])}
    if to == "fp16":
        return fields | {
            "values": values.half().numpy().view(np.uint8).ravel(),
            "steps": np.zeros(0, np.uint8),
        }
    codes, least, step = _quantised(values)
    steps = torch.stack([least, step], -1)  # [N, groups, 2] fp16
    return fields | {"values": codes.numpy().ravel(), "steps": steps.numpy().view(np.uint8).ravel()}


def read(entry: Entry, stored: str) -> Tensor:
    """The vectors of an entry, [N, H] float32."""
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
    log.warning("values beyond fp16's range are stored divided by %g", scale)


def _tensor(raw: np.ndarray, dtype: torch.dtype) -> Tensor:
    # A copy: the bytes are read-only, and may belong to a mapped file.
    return torch.from_numpy(raw.copy()).view(dtype) if len(raw) else torch.zeros(0, dtype=dtype)


def _scale(hidden: Tensor, what: str) -> float:
    """A power of two that brings all values into fp16's range; 1 for nearly all models."""
    if not hidden.numel():
        return 1.0
    largest = float(hidden.abs().max())
    if not math.isfinite(largest):
        row = int((~hidden.isfinite()).any(-1).nonzero()[0, 0])
        raise SignalError(
            f"the teacher's {what} at scored position {row} is not finite.",
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
