"""Rows of a key-value cache: select some of them, or join two caches.

Positions are aligned on the right, where the next token goes; what is missing on the left is
padding that the attention mask hides.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


def select(cache: Any, rows: Tensor) -> None:
    """Keep these rows [R], in this order; a row may occur twice. In place."""
    # Every kind of layer can reorder its rows, recurrent states included.
    cache.reorder_cache(rows)


def joinable(cache: Any) -> bool:
    """Whether `join` supports every layer: plain attention, with or without a sliding window."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def join(cache: Any, other: Any, length: int) -> None:
    """Add the rows of `other` below those of `cache`; both then hold `length` positions. In place."""
    for layer, more in zip(cache.layers, other.layers, strict=True):
        held = length
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = length
            held = min(length, layer.sliding_window - 1)
        layer.keys = torch.cat([fit(layer.keys, held), fit(more.keys, held)])
        layer.values = torch.cat([fit(layer.values, held), fit(more.values, held)])


def fit(states: Tensor, length: int, dim: int = -2) -> Tensor:
    """Cut to the last `length` positions, or pad with zeros on the left."""
    missing = length - states.shape[dim]
    if missing <= 0:
        return states.narrow(dim, -missing, length)
    shape = list(states.shape)
    shape[dim] = missing
    return torch.cat([states.new_zeros(shape), states], dim)
