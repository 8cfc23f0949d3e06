"""Where numbers are added up: in float64 on their device, or on the CPU where the device has no float64.

A sum of many tokens' losses in float32 loses digits that tests and users compare. On the CPU and on CUDA nothing
moves and nobody waits; on a device without float64 (Apple's MPS) a chunk's values cross to the CPU first.
"""

from __future__ import annotations

import torch
from torch import Tensor

HOST = torch.device("cpu")
WITHOUT_FLOAT64 = frozenset({"mps"})


def home(device: torch.device) -> torch.device:
    """The device that keeps float64 sums of values on `device`."""
    return HOST if device.type in WITHOUT_FLOAT64 else device


def wide(values: Tensor) -> Tensor:
    """The values in float64, on the device that keeps their sums."""
    # First the move: a device without float64 cannot widen.
    return values.to(home(values.device)).double()


def total(values: Tensor) -> Tensor:
    """Sum values [...] in float64, on the device that keeps their sums."""
    return values.to(home(values.device)).sum(dtype=torch.float64)


def zero(device: torch.device) -> Tensor:
    """An empty float64 sum of values on `device`."""
    return torch.zeros((), dtype=torch.float64, device=home(device))


def back(values: Tensor, like: Tensor) -> Tensor:
    """Float64 values in the dtype and on the device of `like`."""
    return values.to(like.dtype).to(like.device)
