"""A model in parts, one in every process: only the first one ever holds all of it, in memory of the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from potstill.devices import ranks
from potstill.models import anatomy
from potstill.models.border import quiet


def empty_like(model: Any | None) -> Any:
    """The first process's model without weights, in every process: parameters on `meta`, buffers computed."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    facts = None if model is None else (model.config, next(model.parameters()).dtype)
    config, dtype = ranks.broadcast(facts)
    with quiet(), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def shard_blocks(model: Any) -> None:
    """Cut every block into one part a process; embeddings, norms and head stay whole in each."""
    for block in anatomy.layers(model):
        fully_shard(block)


@torch.no_grad()
def fill(module: nn.Module, whole: Mapping[str, Tensor], device: torch.device) -> None:
    """Give an empty module, cut or not, the first process's weights by their names.

    One tensor at a time is whole on a device.
    """
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.to_empty(device=device)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    for name, parameter in module.named_parameters():
        source = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        if ranks.first():
            source.copy_(whole[name])
        if isinstance(parameter, DTensor):
            part = distribute_tensor(source, parameter.device_mesh, parameter.placements)
            parameter.to_local().copy_(part.to_local())
        else:
            dist.broadcast(source, 0)
            parameter.copy_(source)


def in_blocks(whole: Any | None, device: torch.device) -> tuple[Any, anatomy.HeadForm]:
    """The first process's model with a part of every block in each process, and the form of its head."""
    form = ranks.by_first(lambda: anatomy.head_form(whole))
    parts = empty_like(whole)
    shard_blocks(parts)
    fill(parts, {} if whole is None else whole.state_dict(), device)
    return parts, form


def cut_again(model: nn.Module) -> None:
    """Let go of the other processes' parts that a forward pass has gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass of the model needs all processes."""
    return any(isinstance(module, FSDPModule) for module in model.modules())
