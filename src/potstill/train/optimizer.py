"""The optimizer, and its learning rate at each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from potstill.recipe.defaults import settled
from potstill.recipe.training import Training


def learning_rate_at(spec: Training, step: int) -> float:
    """The learning rate of optimizer step `step` (0-based)."""
    highest, steps = settled(spec.learning_rate), settled(spec.steps)
    warm = math.ceil(spec.warmup * steps)
    if step < warm:
        return highest * (step + 1) / warm
    share = (step - warm) / max(1, steps - warm)
    if spec.schedule == "cosine":
        return highest * 0.5 * (1 + math.cos(math.pi * share))
    return highest * (1 - share if spec.schedule == "linear" else 1.0)


def make_optimizer(module: nn.Module, spec: Training) -> torch.optim.AdamW:
    """AdamW over what is trained; vectors (norms, biases) do not decay."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settled(spec.learning_rate), betas=spec.betas, eps=1e-8, fused=True)
