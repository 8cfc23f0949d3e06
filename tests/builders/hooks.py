"""Hooks on a model: a logit that is raised, and the passes that are made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def raised(model: Any, token: int, by: float) -> Iterator[None]:
    """While open, the logit of `token` is higher by `by`."""

    def lift(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        offset = torch.zeros(logits.shape[-1])
        offset[token] = by
        return logits + offset

    handle = model.get_output_embeddings().register_forward_hook(lift)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watched(model: Any) -> Iterator[list[tuple[int, int]]]:
    """The shape [rows, positions] of the ids of every forward pass made while open."""
    shapes: list[tuple[int, int]] = []

    def note(module: Any, inputs: Any, keywords: dict[str, Any]) -> None:
        shapes.append(tuple(keywords["input_ids"].shape))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()
