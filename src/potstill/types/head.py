"""What turns hidden states into logits."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.errors import SignalError


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits: softcap(scale * (h W' + b)).

    `vocabulary` counts the ids that the tokenizer knows; rows beyond are padding and are cut
    before the softmax. `lora` is (A [r, H], B [V, r], scaling). `module` is the model's own head,
    used as it is when its form is not known here (a quantised head).
    """

    weight: Tensor | None  # [V, H]
    vocabulary: int
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None
    lora: tuple[Tensor, Tensor, float] | None = None
    module: torch.nn.Module | None = None

    def __post_init__(self) -> None:
        parts = {"weight": self.weight, "bias": self.bias, "LoRA": self.lora and self.lora[1]}
        for what, part in parts.items():
            if part is not None and part.shape[0] < self.vocabulary:
                raise SignalError(
                    f"the head's {what} has {part.shape[0]} rows, fewer than its vocabulary of {self.vocabulary}.",
                    fix="Count the ids that the head knows; resize the model's embeddings for added tokens.",
                )

    def cut(self, vocabulary: int) -> Head:
        """The same head for its first `vocabulary` ids; no weight is copied."""
        return replace(self, vocabulary=vocabulary)

    def to(self, device: torch.device) -> Head:
        """The head on that device; a copy of what is elsewhere."""
        weight, bias = (None if part is None else part.to(device) for part in (self.weight, self.bias))
        lora = self.lora and (self.lora[0].to(device), self.lora[1].to(device), self.lora[2])
        module = self.module
        if module is not None and any(part.device != device for part in module.parameters()):
            module = copy.deepcopy(module).to(device)
        return replace(self, weight=weight, bias=bias, lora=lora, module=module)

    def shaped(self, raw: Tensor) -> Tensor:
        """softcap(scale * raw), for what the output layer gives."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
