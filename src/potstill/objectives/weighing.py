"""Weights of tokens as the objective needs them, read from their plug-in files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.objectives.target import KINDS

Weigh = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Named:
    """A token weight from a plug-in file, with its options."""

    name: str
    weights: Callable[..., Tensor]
    supports: frozenset[str]
    options: Mapping[str, Any]

    def __call__(self, student_lp: Tensor, teacher_lp: Tensor, place: Tensor) -> Tensor:
        return self.weights(student_lp, teacher_lp, place, **self.options)


def weigh_by(module: Any, name: str, options: Mapping[str, Any]) -> Weigh:
    """A token weight's plug-in with its options, tried once, so that it refuses them now.

    Raises:
        RecipeError: an option is out of range.
    """
    named = Named(name, module.weights, frozenset(getattr(module, "SUPPORTS", KINDS.values())), options)
    even = torch.full((1, 2), 0.5).log()
    named(even, even, torch.zeros(1))
    return named
