"""A token weight as objectives use it, read from its plug-in module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenWeight:
    """A token weight with its options, made from a plug-in module by `from_module`."""

    name: str
    function: Callable[..., Tensor]
    supports: frozenset[str] | None  # kinds of signal; None for all
    options: Mapping[str, Any]

    @staticmethod
    def from_module(module: Any, options: Mapping[str, Any] | None = None) -> TokenWeight:
        """Read a plug-in module or namespace and evaluate it once, on two even outcomes.

        Raises:
            RecipeError: an option is out of range.
        """
        options = dict(options or {})
        even = torch.full((1, 2), 0.5).log()
        module.weights(even, even, torch.zeros(1), **options)
        name = module.__name__.rpartition(".")[2]
        return TokenWeight(name, module.weights, getattr(module, "SUPPORTS", None), options)

    def reads(self, kind: str) -> bool:
        """Whether it can be read from that kind of signal."""
        return self.supports is None or kind in self.supports

    def __call__(self, student_lp: Tensor, teacher_lp: Tensor, place: Tensor) -> Tensor:
        return self.function(student_lp, teacher_lp, place, **self.options)
