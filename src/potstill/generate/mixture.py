"""Several models that write one text: all read every token, and what is drawn from is the average of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from potstill.generate.beside import Caches, positions_of

Pool: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""(logits [B, V] of each model) -> log-probabilities [B, V] of the average."""


class Mixture(nn.Module):
    """M models, called as one by `decode.Decoder`. A draw at the temperature is a draw from their average.

    Args:
        pool: makes one distribution of all, each at the sampling temperature already.
        vocabulary: ids of every head; rows beyond are cut before the softmax.
        unused: ids below it that are no token, and have no probability.
        temperature: above 0, at which the text is drawn.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        pool: Pool,
        *,
        vocabulary: int,
        unused: Sequence[int] = (),
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._pool = pool
        self._vocabulary = vocabulary
        self._unused = tuple(unused)
        self._temperature = temperature

    @property
    def config(self) -> Any:
        """As many positions as all models have."""
        return positions_of(self.models)

    def forward(self, *, past_key_values: Caches | None, **inputs: Any) -> Any:
        caches = [None] * len(self.models) if past_key_values is None else past_key_values.parts
        outputs = [
            model(past_key_values=cache, **inputs) for model, cache in zip(self.models, caches, strict=True)
        ]
        kept = tuple(output.past_key_values for output in outputs)
        log_r = self._pool([self._logits(output) for output in outputs])
        return SimpleNamespace(
            logits=(self._temperature * log_r).unsqueeze(1),
            past_key_values=None if None in kept else Caches(kept),
        )

    def _logits(self, output: Any) -> Tensor:
        logits = output.logits[:, -1, : self._vocabulary].float()
        if self._unused:
            logits = logits.index_fill(1, torch.tensor(self._unused, device=logits.device), -torch.inf)
        return logits
