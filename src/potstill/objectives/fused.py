"""A linear head and a loss on its logits, chunk by chunk: logits of a whole batch never exist.

The forward pass computes the gradient in the memory of the logits, pulls it through the head at
once, and keeps only dh [N, H] and, for a trained head, dW [V, H]. softmax is fp32 or wider; on a
CPU half-precision weights are widened in tiles, so that logits carry no half-precision rounding:
late in training the gradient is a small difference p - q, which rounding would drown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from potstill.errors import SignalError
from potstill.models.projection import Projection, wide
from potstill.types import Head, Loss

DEFAULT_CHUNK_BYTES = 96 * 2**20

Mode = Literal["store", "recompute"]
Rowwise = Callable[[Tensor, slice, bool], tuple[Tensor, Mapping[str, Tensor]]]
"""(logits [c, V] before temperature, their rows, want gradient) -> (weighted loss [c], metric sums).

With a gradient wanted it is written into the logits' memory, weights included."""


@dataclass(frozen=True)
class Rows:
    """A rowwise loss that says how many rows each of its inputs has."""

    call: Rowwise
    counts: tuple[int, ...]

    def __call__(self, logits: Tensor, rows: slice, grad: bool) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.call(logits, rows, grad)


@dataclass(frozen=True)
class _Needs:
    hidden: bool
    weight: bool
    bias: bool
    lora: bool

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias or self.lora


_NOTHING = _Needs(False, False, False, False)
_TWICE = (
    "the loss was backpropagated twice; its gradients live only once. "
    "Call it again instead of retain_graph=True. From hidden states and a linear head, "
    "DistillationLoss(mode='recompute') computes them anew each time."
)
_Gradients = tuple[Tensor | None, ...]


def _sweep(
    hidden: Tensor,
    head: Head,
    rowwise: Rowwise,
    chunk_rows: int,
    needs: _Needs,
    metrics: dict[str, Tensor],
) -> tuple[Tensor, _Gradients]:
    """All chunks once: the summed loss, and the gradients by hidden, weight, bias and LoRA's two."""
    projection = Projection(head, hidden.dtype)
    dtype, vocabulary, n = projection.dtype, head.vocabulary, hidden.shape[0]
    lora_a, lora_b = head.lora[:2] if head.lora is not None else (None, None)

    def zeros(like: Tensor | None, wanted: bool) -> Tensor | None:
        return torch.zeros_like(like, dtype=dtype) if wanted and like is not None else None

    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    d_hidden = torch.empty_like(hidden, dtype=dtype) if needs.hidden else None
    d_weight, d_bias = zeros(head.weight, needs.weight), zeros(head.bias, needs.bias)
    d_a, d_b = zeros(lora_a, needs.lora), zeros(lora_b, needs.lora)
    buffer = torch.empty(min(chunk_rows, n), vocabulary, dtype=dtype, device=hidden.device)
    for start in range(0, n, chunk_rows):
        rows = slice(start, min(start + chunk_rows, n))
        chunk = hidden[rows]
        logits = projection.logits(chunk, buffer[: chunk.shape[0]])
        slope = projection.slope(logits) if needs.any else None
        losses, sums = rowwise(logits, rows, needs.any)
        total += losses.sum(dtype=torch.float64)
        _add(metrics, sums)
        if not needs.any:
            continue
        grad = projection.to_linear(logits, slope)
        if d_hidden is not None:
            projection.d_hidden(grad, d_hidden[rows])
        if d_weight is not None:
            _add_product(d_weight[:vocabulary], grad, chunk)
        if d_bias is not None:
            d_bias[:vocabulary] += grad.sum(0)
        if d_a is not None and d_b is not None and projection.lora is not None:
            a, b, scaling = projection.lora
            d_b[:vocabulary].addmm_(grad.t(), chunk.to(dtype) @ a.to(dtype).t(), alpha=scaling)
            d_a.addmm_((grad @ b.to(dtype)).t(), chunk.to(dtype), alpha=scaling)
    return total.to(dtype), (d_hidden, d_weight, d_bias, d_a, d_b)


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
        head: Head,
        rowwise: Rowwise,
        chunk_rows: int,
        needs: _Needs,
        mode: Mode,
        metrics: dict[str, Tensor],
    ) -> Tensor:
        now = needs if mode == "store" else _NOTHING
        total, gradients = _sweep(hidden, head, rowwise, chunk_rows, now, metrics)
        ctx.gradients = gradients if mode == "store" else None
        ctx.again = None if mode == "store" else (head, rowwise, chunk_rows, needs)
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (hidden, weight, bias, lora_a, lora_b))
        if mode == "recompute":
            ctx.save_for_backward(hidden)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if ctx.again is not None:
            head, rowwise, chunk_rows, needs = ctx.again
            hidden = ctx.saved_tensors[0]
            with torch.autocast(hidden.device.type, enabled=False):
                _, ctx.gradients = _sweep(hidden, head, rowwise, chunk_rows, needs, {})
        if ctx.gradients is None:
            raise RuntimeError(_TWICE)
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [
            None if g is None else g.mul_(grad_output.to(g.dtype)).to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None, None)


class _LogitLoss(torch.autograd.Function):
    """The same on logits that exist already; the gradient replaces a copy of them."""

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
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    mode: Mode = "store",
) -> Loss:
    """Sum over the N rows of `hidden` of a loss on the head's logits.

    Args:
        hidden: [N, H], scored positions only.
        head: the head that reads them; its padded rows are cut before the softmax.
        rowwise: the loss of a chunk, see `Rowwise`.
        chunk_bytes: memory for a chunk's logits, the student's and the teacher's together.
        mode: "store" computes the gradient in the forward pass and keeps dh and dW until the backward
            pass; "recompute" keeps nothing and sweeps again, for heads whose dW would not fit.

    Returns:
        sum, count N, and metric sums. In mode "store" a second backward raises. Under `torch.no_grad`
        or with nothing to train no gradient is computed in either mode.
    """
    _require_rows(rowwise, hidden.shape[0])
    metrics: dict[str, Tensor] = {}
    count = torch.tensor(hidden.shape[0], device=hidden.device)
    rows_at_once = chunk_rows(head.vocabulary, wide(hidden.dtype), chunk_bytes)
    if head.module is not None:
        return Loss(_through_module(hidden, head, rowwise, rows_at_once, metrics), count, metrics)
    assert head.weight is not None
    lora_a, lora_b = head.lora[:2] if head.lora is not None else (None, None)
    hidden_, weight, bias, a, b = (
        torch.is_grad_enabled() and t is not None and t.requires_grad
        for t in (hidden, head.weight, head.bias, lora_a, lora_b)
    )
    needs = _Needs(hidden_, weight, bias, a or b)
    with torch.autocast(hidden.device.type, enabled=False):
        total = _LinearLoss.apply(
            hidden, head.weight, head.bias, lora_a, lora_b, head, rowwise, rows_at_once, needs, mode, metrics
        )
    return Loss(total, count, metrics)


def logits_loss(logits: Tensor, rowwise: Rowwise, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Loss:
    """The same for logits [N, V] that exist already."""
    _require_rows(rowwise, logits.shape[0])
    metrics: dict[str, Tensor] = {}
    step = chunk_rows(logits.shape[1], wide(logits.dtype), chunk_bytes)
    total = logits.new_zeros((), dtype=wide(logits.dtype)) + 0.0 * logits[:0].sum()
    for start in range(0, logits.shape[0], step):
        rows = slice(start, min(start + step, logits.shape[0]))
        total = total + _LogitLoss.apply(logits[rows], rowwise, rows, metrics)
    return Loss(total, torch.tensor(logits.shape[0], device=logits.device), metrics)


def _require_rows(rowwise: Rowwise, n: int) -> None:
    if isinstance(rowwise, Rows) and (other := [count for count in rowwise.counts if count != n]):
        raise SignalError(
            f"the targets have {other[0]} rows, {n} positions are scored.",
            fix="Give one row for each scored position, in row-major order.",
        )


def chunk_rows(vocabulary: int, dtype: torch.dtype, chunk_bytes: int) -> int:
    """Rows whose student and teacher logits fit in `chunk_bytes`, at least 16."""
    return max(16, chunk_bytes // (2 * vocabulary * dtype.itemsize))


def _through_module(
    hidden: Tensor, head: Head, rowwise: Rowwise, step: int, metrics: dict[str, Tensor]
) -> Tensor:
    """A head of unknown form (quantised, say): its own forward, recomputed in the backward pass."""
    module = head.module
    assert module is not None

    def one(chunk: Tensor, rows: slice, sums: dict[str, Tensor]) -> Tensor:
        logits = module(chunk)[:, : head.vocabulary]
        if head.scale != 1.0:
            logits = logits * head.scale
        if head.softcap is not None:
            logits = head.softcap * torch.tanh(logits / head.softcap)
        return _LogitLoss.apply(logits, rowwise, rows, sums)

    total = hidden.new_zeros((), dtype=wide(hidden.dtype)) + 0.0 * hidden[:0].sum()
    if not hidden.shape[0]:  # gradients of 0, as from a known head: other ranks wait for them
        total = total + sum((0.0 * p.sum() for p in module.parameters() if p.requires_grad), torch.zeros(()))
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, min(start + step, hidden.shape[0]))
        sums: dict[str, Tensor] = {}
        total = total + checkpoint(one, hidden[rows], rows, sums, use_reentrant=False)
        _add(metrics, {name: value.clone() for name, value in sums.items()})
    return total


def _add(metrics: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    for name, value in sums.items():
        metrics[name] = metrics[name] + value if name in metrics else value.detach()


def _add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad' hidden, accumulated in fp32; half-precision operands where the device is fast at it."""
    if grad.device.type == "cpu" or hidden.dtype == total.dtype:
        total.addmm_(grad.t(), hidden.to(total.dtype))
    else:
        total += torch.mm(grad.to(hidden.dtype).t(), hidden, out_dtype=total.dtype)
