"""One process or many: sums over ranks, and the wrappers that reduce gradients."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from potstill.models import anatomy

Sharding = Literal["none", "ddp", "fsdp"]


def rank() -> int:
    """This process's rank, 0 without process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """Sum over all ranks, in the dtype of `value`."""
    if world() == 1:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def anyone(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank, so that all take the same branch."""
    return bool(total(torch.tensor(float(flag), device=device)).item())


def wrap(module: nn.Module, sharding: Sharding, student: nn.Module) -> nn.Module:
    """Wrap `module` (backbone, head and loss in one) for several ranks. Both wrappers average gradients."""
    if sharding == "none":
        return module
    if sharding == "ddp":
        return nn.parallel.DistributedDataParallel(module)
    from torch.distributed.fsdp import fully_shard

    for block in anatomy.layers(student):
        fully_shard(block)
    fully_shard(module)
    return module
