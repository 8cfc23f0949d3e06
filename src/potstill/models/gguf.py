"""A GGUF file beside the model that transformers made of it, which skips what it does not know without a word."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import ModelError
from potstill.models.anatomy import parameter_count

FIX = "Name the model's safetensors instead."


def tensors(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor by its name."""
    return {name: shape for name, (shape, _) in _tensors(file, file.stat().st_mtime_ns).items()}


def numbers(file: Path) -> Counter[str]:
    """How many numbers are stored in each format, by the names of GGUF: F32, BF16, Q4_1, …"""
    counts: Counter[str] = Counter()
    for shape, kind in _tensors(file, file.stat().st_mtime_ns).values():
        counts[kind] += math.prod(shape)
    return counts


@lru_cache(maxsize=4)  # reading a large vocabulary takes a second
def _tensors(file: Path, changed: int) -> dict[str, tuple[tuple[int, ...], str]]:
    from gguf import GGUFReader

    return {
        tensor.name: (tuple(int(size) for size in tensor.shape), tensor.tensor_type.name)
        for tensor in GGUFReader(file).tensors
    }


def require_all_read(file: Path, model: Any) -> None:
    """Require that no stored number was skipped, and that scaled rotary frequencies are scaled in the model too.

    Raises:
        ModelError: the model is another one than the file's.
    """
    from gguf import GGUFReader

    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    factors = [tensor for name, tensor in stored.items() if name.startswith("rope_")]
    scaled = any(np.any(np.asarray(tensor.data, dtype=np.float32) != 1) for tensor in factors)
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if scaled and rope.get("rope_type", "default") == "default":
        raise ModelError(
            f"{file} scales its rotary frequencies ({factors[0].name}), and transformers does not read that.",
            fix=FIX,
        )
    read = parameter_count(model)
    total = sum(int(tensor.n_elements) for name, tensor in stored.items() if not name.startswith("rope_"))
    if model.config.get_text_config().tie_word_embeddings and "output.weight" in stored:
        total -= int(stored["output.weight"].n_elements)
    if total > read:
        raise ModelError(
            f"{file} holds {total - read} numbers that transformers does not read; without them it is another model.",
            fix=FIX,
        )
