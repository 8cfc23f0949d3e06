"""The teacher's head beside its hidden states: one safetensors file, so that a cache needs no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from potstill.cache.files import Folder
from potstill.errors import CacheDamaged
from potstill.types import Head

NAME = "head.safetensors"
CHECK = "head.sha256"


def content_of(head: Head) -> bytes:
    """The file of a head: its rows up to the vocabulary, as they are stored.

    A head of unknown form (`module`) is asked for the matrix that it applies.
    """
    if head.module is not None:
        head = _linear(head)
    assert head.weight is not None
    rows = head.vocabulary
    tensors = {"weight": head.weight[:rows]}
    if head.bias is not None:
        tensors["bias"] = head.bias[:rows]
    facts: dict[str, Any] = {"vocabulary": rows, "scale": head.scale, "softcap": head.softcap}
    if head.lora is not None:
        a, b, facts["lora_scaling"] = head.lora
        tensors |= {"lora_a": a, "lora_b": b[:rows]}
    return save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        {"potstill": json.dumps(facts, sort_keys=True)},
    )


def check_of(content: bytes) -> str:
    """The file beside a head's file: its sha256, in hex."""
    return hashlib.sha256(content).hexdigest() + "\n"


def read_head(folder: Folder) -> Head:
    """The head of a cache of hidden states.

    Raises:
        ArtifactError: it is missing.
        CacheDamaged: it is not as it was written.
    """
    content = folder.read(NAME)
    if check_of(content).encode() != folder.read(CHECK):
        raise CacheDamaged(f"{folder.name}/{NAME} is damaged: its sha256 differs.", block=NAME)
    size = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["potstill"])
    return _head(load(content), facts)


def _head(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Head:
    lora = None
    if "lora_a" in tensors:
        lora = tensors["lora_a"], tensors["lora_b"], float(facts["lora_scaling"])
    return Head(
        tensors["weight"],
        facts["vocabulary"],
        bias=tensors.get("bias"),
        scale=facts["scale"],
        softcap=facts["softcap"],
        lora=lora,
    )


@torch.no_grad()
def _linear(head: Head) -> Head:
    """The matrix and bias that an output layer of unknown form applies, in fp32."""
    assert head.module is not None
    place = next(iter([*head.module.parameters(), *head.module.buffers()]))
    width = int(getattr(head.module, "in_features", 0)) or int(place.shape[-1])
    dtype = place.dtype if place.is_floating_point() else torch.float32
    one = torch.eye(width, dtype=dtype, device=place.device)
    bias = head.module(torch.zeros_like(one[:1]))[0, : head.vocabulary].float()
    columns = [head.module(part)[:, : head.vocabulary].float() - bias for part in one.split(64)]
    weight = torch.cat(columns).t().contiguous()
    return Head(
        weight, head.vocabulary, bias if bool(bias.any()) else None, scale=head.scale, softcap=head.softcap
    )
