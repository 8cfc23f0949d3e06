"""Choose the next id: greedily, or drawn from the tempered and truncated distribution.

A row's draws depend on (seed, prompt, sample, step) alone: neither the other rows of a batch nor its size
change a row's text.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from potstill.errors import RecipeError

NOT_FINITE = -1

_NUCLEUS_GUESS = 1024


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation. All are explicit; a model's own defaults have no effect.

    `max_new_tokens` counts the stop token too. `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 keep every
    id; both apply after the temperature, top-k first.

    Raises:
        RecipeError: a value is out of its range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "Use 1 or more.")
        _require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "Use 0 for greedy text, or a positive number.",
        )
        _require(
            0 < self.top_p <= 1, "top_p", self.top_p, "Use a share above 0 and up to 1; 1 keeps all ids."
        )
        _require(self.top_k >= 0, "top_k", self.top_k, "Use 0 to keep all ids, or a positive number.")


def uniforms(seed: int, prompt: Sequence[int], sample: int, count: int) -> np.ndarray:
    """Draw `count` numbers in [0, 1) for sample `sample` of a prompt, float32; other prompts have no effect."""
    return _generator(seed, prompt, sample).random(count, dtype=np.float32)


def draw_seed(seed: int, prompt: Sequence[int], sample: int) -> int:
    """A seed of 31 bits for sample `sample` of a prompt, for engines that draw by themselves."""
    return int(_generator(seed, prompt, sample).integers(2**31))


def _generator(seed: int, prompt: Sequence[int], sample: int) -> np.random.Generator:
    number = int.from_bytes(hashlib.sha256(str(list(prompt)).encode()).digest()[:16], "big")
    return np.random.default_rng([seed, number, sample])


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Choose one id for each row [B] from logits [B, V] and uniform numbers [B]; -1 for logits not finite.

    A draw inverts the CDF: the first id whose cumulative probability exceeds the number, in fp32.
    """
    logits = logits.float()
    peak, best = logits.max(-1)
    if sampling.temperature == 0:
        return best.where(peak.isfinite(), NOT_FINITE)
    # The peak is subtracted first, so that a tiny temperature cannot overflow.
    probs = _truncated(((logits - peak[:, None]) / sampling.temperature).softmax(-1), sampling)
    # A parallel cumulative sum may round so that it points at a truncated id: only ids with a probability
    # count.
    cdf = probs.cumsum(-1).masked_fill_(probs == 0, 0.0)
    total = cdf.amax(-1, keepdim=True)
    chosen = (cdf > uniform[:, None] * total).to(torch.uint8).argmax(-1)
    return chosen.where(total[:, 0].isfinite(), NOT_FINITE)


def _truncated(probs: Tensor, sampling: Sampling) -> Tensor:
    """Zero outside the top-k and the nucleus, not renormalised. Equal probabilities are kept or cut together."""
    if 0 < sampling.top_k < probs.shape[-1]:
        weakest = probs.topk(sampling.top_k).values[:, -1:]
        probs = probs * (probs >= weakest)
    if sampling.top_p < 1:
        goal = sampling.top_p * probs.sum(-1, keepdim=True)
        # The nucleus is nearly always small, and sorting the whole vocabulary is not.
        largest = probs.topk(min(_NUCLEUS_GUESS, probs.shape[-1])).values
        if (largest.sum(-1, keepdim=True) < goal).any():
            largest = probs.sort(-1, descending=True).values
        before = largest.cumsum(-1) - largest
        size = (before < goal).sum(-1, keepdim=True)
        probs = probs * (probs >= largest.gather(-1, size - 1))
    return probs


def _require(holds: bool, name: str, value: object, fix: str) -> None:
    if not holds:
        raise RecipeError(f"{name} cannot be {value}.", fix=fix, path=name, value=value)
