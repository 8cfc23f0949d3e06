"""Training in several processes: replicas of the student (DDP) or shards of it (FSDP2)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from potstill.models import anatomy

REPLICA_SHARE = 0.4  # of a device's memory; the teacher and activations need the rest
Sharding = Literal["none", "ddp", "fsdp"]
# Of the first process's buffers before every forward pass: torch 2.13 has renamed the option.
_SYNC = "forward_sync_buffers"
_PARAMETERS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_COPIES: dict[str, Any] = {_SYNC if _SYNC in _PARAMETERS else "broadcast_buffers": False}


def wrap(module: nn.Module, sharding: Sharding, student: nn.Module) -> nn.Module:
    """Wrap `module` (backbone, head and loss in one) for several processes. Both wrappers average gradients."""
    if sharding == "none":
        return module
    if sharding == "ddp":
        return DistributedDataParallel(module, **_NO_COPIES)
    for block in anatomy.layers(student):
        fully_shard(block)
    fully_shard(module)
    register_fsdp_forward_method(module, "decode")
    return module


def choose(size: int, device: torch.device) -> tuple[Sharding, str]:
    """Choose between replicas of a training of so many bytes and parts of it, with the reason."""
    if device.type != "cuda":
        return "ddp", "each process of a CPU shares its memory with the others"
    memory = torch.cuda.get_device_properties(device).total_memory
    fits = size < REPLICA_SHARE * memory
    words = f"{size / 1e9:.1f} GB of weights, gradients and averages, {memory / 1e9:.0f} GB a device"
    return ("ddp" if fits else "fsdp"), words


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside a replica; a sharded one is itself."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def named_trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What training changes, by name."""
    return [(name, p) for name, p in named_parameters(module) if p.requires_grad]


def named_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trained and frozen ones; of a student in parts the parts, also where a forward pass has gathered them."""
    if isinstance(module, FSDPModule):
        module.reshard()  # embeddings and head stay whole after a pass without gradients
    return list(unwrap(module).named_parameters())


@contextmanager
def micro_batch(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Exchange gradients in the last micro-batch of a step only, and keep the head together until then."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
        module.set_reshard_after_backward(last, recurse=False)
    yield


def cast_once(module: nn.Module, device: torch.device) -> AbstractContextManager[object]:
    """Keep the weights that autocast casts for all micro-batches of a step: its cache ends with the outermost context.

    Not for shards, which would keep the whole model.
    """
    if any(isinstance(part, FSDPModule) for part in module.modules()):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def clip(parameters: Iterable[nn.Parameter], longest: float | None) -> float:
    """Scale all gradients so that their norm is at most `longest`, and return what it was."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, longest or math.inf)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
