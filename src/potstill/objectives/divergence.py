"""A divergence as the objective needs it, read from its plug-in file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Value = Callable[..., Tensor]


@dataclass(frozen=True)
class Divergence:
    """A divergence as the objective needs it, made from a plug-in module by `from_module`."""

    name: str
    value: Value
    value_and_partial: Callable[..., tuple[Tensor, Tensor]]
    supports: frozenset[str] = frozenset({"dense"})
    temperature_power: int = 2
    vanishes: bool = True
    tangent: bool = False  # the partial sums to 0 over the outcomes
    additive: bool = False  # the value is a sum over the outcomes
    wants_tail: bool = False  # takes `tail`: whether the last column is a tail bucket
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def linear(self) -> bool:
        """Linear in the teacher up to a constant, so right for ids drawn from it."""
        return "sampled" in self.supports

    @staticmethod
    def from_module(module: Any, options: Mapping[str, Any] | None = None) -> Divergence:
        """Read `value`, and `value_and_partial` or `partial` where they exist; else autograd steps in."""
        name = module.__name__.rpartition(".")[2]
        both = getattr(module, "value_and_partial", None)
        partial = getattr(module, "partial", None)
        if both is None and partial is not None:

            def both(student_lp: Tensor, teacher_lp: Tensor, **kw: Any) -> tuple[Tensor, Tensor]:
                return module.value(student_lp, teacher_lp, **kw), partial(student_lp, teacher_lp, **kw)

        return Divergence(
            name=name,
            value=module.value,
            value_and_partial=both or _by_autograd(module.value),
            supports=frozenset(getattr(module, "SUPPORTS", {"dense"})),
            temperature_power=getattr(module, "TEMPERATURE_POWER", 0),
            vanishes=getattr(module, "VANISHES", False),
            tangent=getattr(module, "TANGENT", False),
            additive=getattr(module, "ADDITIVE", False),
            wants_tail="tail" in inspect.signature(module.value).parameters,
            options=dict(options or {}),
        )


def _by_autograd(value: Value) -> Callable[..., tuple[Tensor, Tensor]]:
    def both(student_lp: Tensor, teacher_lp: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = student_lp.detach().requires_grad_()
            result = value(leaf, teacher_lp, **options)
            (partial,) = torch.autograd.grad(result.sum(), leaf)
        return result.detach(), partial

    return both
