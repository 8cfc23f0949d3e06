"""A linear head and a loss on its logits, chunk by chunk: logits of a whole batch never exist.

The forward pass computes the gradient in the memory of the logits, pulls it through the head at
once, and keeps only dh [N, H] and, for a trained head, dW [V, H]. softmax is fp32 or wider; on a
CPU half-precision weights are widened in tiles, so that logits carry no half-precision rounding:
late in training the gradient is a small difference p - q, which rounding would drown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from potstill.devices import exact
from potstill.models.projection import Projection, wide
from potstill.recipe.defaults import CHUNK_BYTES
from potstill.types import Head, Loss

CPU = torch.device("cpu")
GPU_TILE = 128  # rows

Mode = Literal["store", "recompute"]


class Rowwise(Protocol):
    """The loss of the rows of one batch, called chunk by chunk."""

    def require_rows(self, n: int) -> None:
        """Refuse inputs that do not have N rows."""

    def __call__(self, logits: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Weighted losses [c] of logits [c, V] before temperature, and metric sums.

        With `gradient` the derivative of their sum is written into the logits' memory. A class with `direct = True`
        also takes `into` [c, V], and then writes it there alone, in that tensor's dtype.
        """


_TWICE = (
    "the loss was backpropagated twice; its gradients live only once. "
    "Call it again instead of retain_graph=True. From hidden states and a linear head, "
    "DistillationLoss(mode='recompute') computes them anew each time."
)


class _Gradients:
    """Gradients by hidden states, weight, bias and LoRA's A and B, summed chunk by chunk; None where not needed."""

    def __init__(self, projection: Projection, hidden: Tensor, needed: Sequence[bool]) -> None:
        head, dtype = projection.head, projection.dtype
        self._projection = projection
        self._hidden = torch.empty_like(hidden, dtype=dtype) if needed[0] else None
        self._weight, self._bias, self._a, self._b = (
            torch.zeros_like(tensor, dtype=dtype) if tensor is not None and need else None
            for tensor, need in zip(_tensors_of(head), needed[1:], strict=True)
        )

    def add(self, by_linear: Tensor, operand: Tensor, chunk: Tensor, rows: slice) -> None:
        """Add the gradients of a chunk, from the gradient by h W' + b and the same as products read it."""
        projection = self._projection
        vocabulary, dtype = projection.head.vocabulary, projection.dtype
        if self._hidden is not None:
            projection.d_hidden(by_linear, self._hidden[rows], operand)
        if self._weight is not None:
            projection.add_d_weight(operand, chunk, self._weight[:vocabulary])
        if self._bias is not None:
            self._bias[:vocabulary] += by_linear.sum(0)
        if projection.lora is not None:
            a, b, scaling = projection.lora
            if self._b is not None:
                self._b[:vocabulary].addmm_(by_linear.t(), chunk.to(dtype) @ a.to(dtype).t(), alpha=scaling)
            if self._a is not None:
                self._a.addmm_((by_linear @ b.to(dtype)).t(), chunk.to(dtype), alpha=scaling)

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self._hidden, self._weight, self._bias, self._a, self._b


@dataclass(frozen=True)
class _Sweep:
    """One pass over a batch, chunk by chunk: logits, their loss and gradient, the gradient's way back."""

    head: Head
    rowwise: Rowwise
    chunk_rows: int
    needed: tuple[bool, ...]  # gradients, in the order of `_Gradients.tensors`
    rounded: bool  # see `Projection`

    def __call__(
        self, hidden: Tensor, metrics: dict[str, Tensor], *, gradient: bool
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Sum the loss, and with `gradient` the gradients that are needed; add metric sums to `metrics`."""
        projection, n = Projection(self.head, hidden.dtype, rounded=self.rounded), hidden.shape[0]
        wanted = gradient and any(self.needed)
        gradients = _Gradients(projection, hidden, self.needed) if wanted else None
        total = exact.zero(hidden.device)
        direct = getattr(self.rowwise, "direct", False)
        size = (min(self.chunk_rows, n), self.head.vocabulary)
        buffer = torch.empty(size, dtype=projection.dtype, device=hidden.device)
        for start in range(0, n, self.chunk_rows):
            rows = slice(start, min(start + self.chunk_rows, n))
            chunk = hidden[rows]
            logits = projection.logits(chunk, buffer[: chunk.shape[0]])
            slope = None if gradients is None else projection.slope(logits)
            into = projection.direct(logits) if gradients is not None and direct else None
            if into is None:
                losses, sums = self.rowwise(logits, rows, gradients is not None)
            else:
                losses, sums = self.rowwise(logits, rows, True, into=into)  # type: ignore[call-arg]
            total += exact.total(losses)
            _add(metrics, sums)
            if gradients is not None:
                by_linear = projection.to_linear(logits, slope) if into is None else into
                operand = projection.operand(by_linear) if into is None else into
                gradients.add(by_linear, operand, chunk, rows)
        none = (None,) * len(self.needed)
        return total.to(projection.dtype).to(
            hidden.device
        ), none if gradients is None else gradients.tensors()


class _LinearLoss(torch.autograd.Function):
    """`store` sweeps once and keeps the gradients; `recompute` sweeps again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        sweep: _Sweep,
        mode: Mode,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        ctx.sweep = sweep if mode == "recompute" else None
        total, ctx.gradients = sweep(hidden, metrics, gradient=mode == "store")
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (hidden, weight, bias, lora_a, lora_b))
        if mode == "recompute":
            ctx.save_for_backward(hidden)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if ctx.sweep is not None:
            (hidden,) = ctx.saved_tensors
            with torch.autocast(hidden.device.type, enabled=False):
                _, ctx.gradients = ctx.sweep(hidden, {}, gradient=True)
        if ctx.gradients is None:
            raise RuntimeError(_TWICE)
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if g is None else g.mul_(grad_output.to(g.dtype)).to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None)


class _LogitLoss(torch.autograd.Function):
    """A loss on logits that exist already; the gradient replaces a copy of them."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, rowwise: Rowwise, rows: slice, metrics: dict[str, Tensor]
    ) -> Tensor:
        work = logits.detach().to(wide(logits.dtype), copy=True)
        losses, sums = rowwise(work, rows, ctx.needs_input_grad[0])
        _add(metrics, sums)
        # Saved as autograd saves tensors, so that activation checkpointing can drop and recompute it.
        ctx.save_for_backward(*([work] if ctx.needs_input_grad[0] else []))
        ctx.dtype, ctx.spent = logits.dtype, False
        return losses.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if ctx.spent:
            raise RuntimeError(_TWICE)
        ctx.spent = True
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grad_output).to(ctx.dtype), None, None, None


def linear_loss(
    hidden: Tensor,
    head: Head,
    rowwise: Rowwise,
    *,
    chunk_bytes: int | None = None,
    mode: Mode = "store",
    rounded: bool = False,
) -> Loss:
    """Sum a loss on the head's logits over the N rows of `hidden`.

    Args:
        hidden: [N, H], scored positions only.
        head: the head that reads them; its padded rows are cut before the softmax.
        rowwise: the loss of a chunk, see `Rowwise`.
        chunk_bytes: memory for a chunk's logits, the student's and the teacher's together; by default what suits
            the device.
        mode: "store" computes the gradient in the forward pass and keeps dh and dW until the backward
            pass; "recompute" keeps nothing and sweeps again, for heads whose dW would not fit.
        rounded: a device with bf16 units may round the operands of the head's products to bf16.

    Returns:
        sum, count N, and metric sums. In mode "store" a second backward raises. Under `torch.no_grad`
        or with nothing to train no gradient is computed in either mode.
    """
    rowwise.require_rows(hidden.shape[0])
    metrics: dict[str, Tensor] = {}
    count = torch.tensor(hidden.shape[0], device=hidden.device)
    rows_at_once = chunk_rows(head.vocabulary, wide(hidden.dtype), chunk_bytes, hidden.device)
    if head.module is not None:
        return Loss(_through_module(hidden, head, rowwise, rows_at_once, metrics), count, metrics)
    inputs = (hidden, *_tensors_of(head))
    needed = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in inputs)
    with torch.autocast(hidden.device.type, enabled=False):
        sweep = _Sweep(head, rowwise, rows_at_once, needed, rounded)
        total = _LinearLoss.apply(*inputs, sweep, mode, metrics)
    return Loss(total, count, metrics)


def logits_loss(logits: Tensor, rowwise: Rowwise, *, chunk_bytes: int | None = None) -> Loss:
    """Sum a loss on logits [N, V] that exist already."""
    rowwise.require_rows(logits.shape[0])
    metrics: dict[str, Tensor] = {}
    step = chunk_rows(logits.shape[1], wide(logits.dtype), chunk_bytes, logits.device)
    total = _zero(logits)
    for start in range(0, logits.shape[0], step):
        rows = slice(start, min(start + step, logits.shape[0]))
        total = total + _LogitLoss.apply(logits[rows], rowwise, rows, metrics)
    return Loss(total, torch.tensor(logits.shape[0], device=logits.device), metrics)


def chunk_rows(
    vocabulary: int, dtype: torch.dtype, chunk_bytes: int | None = None, device: torch.device = CPU
) -> int:
    """Rows whose student and teacher logits fit in `chunk_bytes`, or in what suits the device; at least 16."""
    held = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) if chunk_bytes is None else chunk_bytes
    rows = max(16, held // (2 * vocabulary * dtype.itemsize))
    # A GPU's products work on tiles of rows, and a tile that is begun costs as much as a full one.
    return rows - rows % GPU_TILE if device.type == "cuda" and rows > GPU_TILE else rows


def _through_module(
    hidden: Tensor, head: Head, rowwise: Rowwise, step: int, metrics: dict[str, Tensor]
) -> Tensor:
    """A head of unknown form (quantised, say): its own forward, recomputed in the backward pass."""
    assert head.module is not None
    total = _zero(hidden)
    if not hidden.shape[0]:  # gradients of 0, as from a known head: other ranks wait for them
        for parameter in head.module.parameters():
            if parameter.requires_grad:
                total = total + 0.0 * parameter.sum()
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, min(start + step, hidden.shape[0]))
        sums: dict[str, Tensor] = {}  # not `metrics`: the recomputation adds to it again
        total = total + checkpoint(
            _module_chunk, hidden[rows], head, rowwise, rows, sums, use_reentrant=False
        )
        _add(metrics, sums)
    return total


def _module_chunk(
    hidden: Tensor, head: Head, rowwise: Rowwise, rows: slice, sums: dict[str, Tensor]
) -> Tensor:
    assert head.module is not None
    logits = head.shaped(head.module(hidden)[:, : head.vocabulary])
    return _LogitLoss.apply(logits, rowwise, rows, sums)


def _tensors_of(head: Head) -> tuple[Tensor | None, ...]:
    """Weight, bias and LoRA's A and B."""
    return (head.weight, head.bias, *((None, None) if head.lora is None else head.lora[:2]))


def _zero(rows: Tensor) -> Tensor:
    """0 with a graph, from no row."""
    return rows.new_zeros((), dtype=wide(rows.dtype)) + 0.0 * rows[:0].sum()


def _add(metrics: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    for name, value in sums.items():
        metrics[name] = metrics[name] + value if name in metrics else value.detach()
