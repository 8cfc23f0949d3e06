"""A head's matrix product, forward and back, in the precision that a small gradient needs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from potstill.models.products import add_product, rounding
from potstill.types import Head

TILE_BYTES = 2**20


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which losses are computed: at least fp32."""
    return torch.promote_types(dtype, torch.float32)


class Projection:
    """A head ready for chunks: h -> logits [c, vocabulary], and the gradient's way back.

    `compute` is the dtype of the hidden states: on CUDA, fp32 master weights are cast to it once.
    With `rounded` a device with bf16 units rounds the operands of fp32 products to bf16, as autocast does in every
    other layer; sums and results stay fp32. A gradient that is handed on in bf16 is rounded there, not here.
    """

    def __init__(self, head: Head, compute: torch.dtype, *, rounded: bool = False) -> None:
        assert head.weight is not None
        self.head = head
        self.weight = head.weight.detach()[: head.vocabulary]
        on_gpu = self.weight.device.type == "cuda"
        if on_gpu:
            # Under autocast the hidden states of fp32 weights are fp32 too, whose products take ten times as long.
            compute = torch.bfloat16 if rounded and compute == torch.float32 else compute
            self.weight = self.weight.to(compute)
        self.bias = None if head.bias is None else head.bias.detach()[: head.vocabulary]
        self.lora = None
        if head.lora is not None:
            a, b, scaling = head.lora
            self.lora = (a.detach(), b.detach()[: head.vocabulary], scaling)
        # CUDA multiplies half-precision operands into fp32 results; elsewhere they are widened first.
        self.dtype = wide(self.weight.dtype)
        self.mixed = on_gpu and self.weight.dtype != self.dtype
        self.tiled = not on_gpu and self.weight.dtype != self.dtype
        rows = max(64, TILE_BYTES // (self.weight.shape[1] * self.dtype.itemsize))
        half = (self.weight.dtype, compute) == (torch.bfloat16, torch.bfloat16)
        self._round_logits = half or (rounded and self.dtype == torch.float32)
        self._round_d_hidden = rounded and compute == torch.float32
        self._round_d_weight = rounded and self.weight.dtype == torch.float32
        size = (rows if self.tiled else 0, self.weight.shape[1])
        self._tile = torch.empty(size, dtype=self.dtype, device=self.weight.device)
        self._operand: Tensor | None = None

    def _tiles(self) -> Iterator[tuple[slice, Tensor]]:
        if not self.tiled:
            yield slice(0, self.weight.shape[0]), self.weight
            return
        size = self._tile.shape[0]
        for start in range(0, self.weight.shape[0], size):
            rows = slice(start, min(start + size, self.weight.shape[0]))
            yield rows, self._tile[: rows.stop - rows.start].copy_(self.weight[rows])

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        """softcap(scale * (h W' + b)) [c, V] into `out`."""
        if hidden.device.type != "cuda":
            hidden = hidden.to(self.dtype)
            with rounding(hidden.device, self._round_logits):
                for rows, weight in self._tiles():
                    torch.mm(hidden, weight.t(), out=out[:, rows])
        elif self.mixed:
            torch.mm(hidden.to(self.weight.dtype), self.weight.t(), out_dtype=self.dtype, out=out)
        else:
            torch.mm(hidden.to(self.dtype), self.weight.t(), out=out)
        if self.lora is not None:
            a, b, scaling = self.lora
            out.addmm_(hidden.to(self.dtype) @ a.to(self.dtype).t(), b.to(self.dtype).t(), alpha=scaling)
        if self.bias is not None:
            out.add_(self.bias)
        if self.head.scale != 1.0:
            out.mul_(self.head.scale)
        if self.head.softcap is not None:
            out.div_(self.head.softcap).tanh_().mul_(self.head.softcap)
        return out

    def slope(self, logits: Tensor) -> Tensor | None:
        """d logits / d (h W' + b), a tensor only with a softcap: 1 - (z / cap)^2."""
        if self.head.softcap is None:
            return None
        return (logits / self.head.softcap).square_().neg_().add_(1.0)

    def to_linear(self, grad: Tensor, slope: Tensor | None) -> Tensor:
        """The gradient by (h W' + b), in place, from the one by the logits."""
        if slope is not None:
            grad.mul_(slope)
        return grad if self.head.scale == 1.0 else grad.mul_(self.head.scale)

    def operand(self, grad: Tensor) -> Tensor:
        """A gradient [c, V] as the products read it: on CUDA in the dtype of half-precision weights.

        Valid until the next call. Its rows begin at multiples of 16 bytes, without which products of an odd vocabulary
        take several times as long.
        """
        return self._room(grad).copy_(grad) if self.mixed else grad

    def direct(self, logits: Tensor) -> Tensor | None:
        """Where a gradient by logits [c, V] may be written as the products read it; None where more is read of it.

        Valid as long as what `operand` returns.
        """
        plain = (
            self.head.softcap is None and self.head.scale == 1.0 and self.bias is None and self.lora is None
        )
        return self._room(logits) if self.mixed and plain else None

    def _room(self, grad: Tensor) -> Tensor:
        rows, width = grad.shape
        if self._operand is None or self._operand.shape[0] < rows:
            size = (rows, -(-width // 8) * 8)
            self._operand = torch.empty(size, dtype=self.weight.dtype, device=grad.device)
        return self._operand[:rows, :width]

    def d_hidden(self, grad: Tensor, out: Tensor, operand: Tensor) -> None:
        """grad [c, V] -> dh [c, H] into `out`; `operand` is that of the gradient."""
        if self.mixed:
            torch.mm(operand, self.weight, out_dtype=self.dtype, out=out)
        else:
            out.zero_()
            with rounding(grad.device, self._round_d_hidden):
                for rows, weight in self._tiles():
                    out.addmm_(grad[:, rows], weight)
        if self.lora is not None:
            a, b, scaling = self.lora
            out.addmm_(grad @ b.to(self.dtype), a.to(self.dtype), alpha=scaling)

    def add_d_weight(self, operand: Tensor, hidden: Tensor, out: Tensor) -> None:
        """Add grad' hidden [V, H] to `out`, summed in fp32; half-precision operands where the device is fast at it."""
        if self.mixed:
            add_product(out, operand.t(), hidden.to(operand.dtype))
        else:
            with rounding(operand.device, self._round_d_weight):
                out.addmm_(operand.t(), hidden.to(out.dtype))


def plain_logits(head: Head, hidden: Tensor) -> Tensor:
    """A head's logits [N, vocabulary] of hidden states [N, H] without a graph, at least in fp32."""
    if head.module is not None:
        return module_logits(head, hidden)
    out = torch.empty(hidden.shape[0], head.vocabulary, dtype=wide(hidden.dtype), device=hidden.device)
    return Projection(head, hidden.dtype).logits(hidden, out)


@torch.no_grad()
def mass_beyond(head: Head, hidden: Tensor, vocabulary: int) -> Tensor | None:
    """The probability [N] that a head gives to its ids from `vocabulary` on, at T = 1; None without such ids."""
    if head.vocabulary <= vocabulary:
        return None
    return plain_logits(head, hidden).softmax(-1)[:, vocabulary:].sum(-1)


@torch.no_grad()
def module_logits(head: Head, hidden: Tensor) -> Tensor:
    """The same through a head of unknown form."""
    assert head.module is not None
    return head.shaped(head.module(hidden)[:, : head.vocabulary].float())
