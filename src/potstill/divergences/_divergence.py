"""A divergence as signals and objectives use it, read from its plug-in module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill.errors import SignalError


@dataclass(frozen=True)
class Divergence:
    """A divergence with its options, made from a plug-in module by `from_module`."""

    name: str
    function: Callable[..., Any]  # the plug-in's `value_and_partial` or `value`
    has_partial: bool  # which of the two; without a partial autograd steps in
    supports: frozenset[str] = frozenset({"dense"})
    temperature_power: int = 2
    vanishes: bool = True
    tangent: bool = False  # the partial sums to 0 over the outcomes
    wants_tail: bool = False  # takes `tail`: whether the last column is a tail bucket
    options: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_module(module: Any, options: Mapping[str, Any] | None = None) -> Divergence:
        """Read a plug-in module or namespace and evaluate it once, on two even outcomes.

        Raises:
            RecipeError: an option is out of range.
        """
        options = dict(options or {})
        function = getattr(module, "value_and_partial", None) or module.value
        even = torch.full((1, 2), 0.5).log()
        return Divergence(
            name=module.__name__.rpartition(".")[2],
            function=function,
            has_partial=isinstance(function(even, even, **options), tuple),
            supports=frozenset(getattr(module, "SUPPORTS", {"dense"})),
            temperature_power=getattr(module, "TEMPERATURE_POWER", 0),
            vanishes=getattr(module, "VANISHES", False),
            tangent=getattr(module, "TANGENT", False),
            wants_tail="tail" in inspect.signature(function).parameters,
            options=options,
        )

    @property
    def linear(self) -> bool:
        """Linear in the teacher up to a constant, so right for ids drawn from it."""
        return "sampled" in self.supports

    def require_support(self, kind: str) -> None:
        """Refuse a kind of signal that the divergence is not right for.

        Raises:
            SignalError: names the kinds that it supports.
        """
        if kind not in self.supports:
            raise SignalError(
                f"{self.name} does not support {kind} signals, only: {', '.join(sorted(self.supports))}.",
                fix="Choose another divergence, or a signal that it supports.",
            )

    def value(self, student_lp: Tensor, teacher_lp: Tensor, *, tail: bool = False) -> Tensor:
        """The divergence [N] of log-probabilities [N, K]; `tail`: the last column is a tail bucket."""
        result = self._call(student_lp, teacher_lp, tail)
        return result[0] if self.has_partial else result

    def value_and_partial(
        self, student_lp: Tensor, teacher_lp: Tensor, *, tail: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The same, and its derivative by each student log-probability [N, K]."""
        if self.has_partial:
            return self._call(student_lp, teacher_lp, tail)
        if torch.compiler.is_compiling():  # a graph knows no leaf; the derivative is the same
            return self._by_transform(student_lp, teacher_lp, tail)
        with torch.enable_grad():
            leaf = student_lp.detach().requires_grad_()
            result = self._call(leaf, teacher_lp, tail)
            (partial,) = torch.autograd.grad(result.sum(), leaf)
        return result.detach(), partial

    def _by_transform(self, student_lp: Tensor, teacher_lp: Tensor, tail: bool) -> tuple[Tensor, Tensor]:
        def summed(lp: Tensor) -> tuple[Tensor, Tensor]:
            value = self._call(lp, teacher_lp, tail)
            return value.sum(), value

        partial, value = torch.func.grad(summed, has_aux=True)(student_lp)
        return value, partial

    def _call(self, student_lp: Tensor, teacher_lp: Tensor, tail: bool) -> Any:
        more = {"tail": tail} if self.wants_tail else {}
        return self.function(student_lp, teacher_lp, **more, **self.options)
