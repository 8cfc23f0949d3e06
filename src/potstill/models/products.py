"""Matrix products on the bf16 units of a processor, with fp32 sums and results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 ones on this device."""
    if device.type == "cpu":
        abilities = torch.cpu.get_capabilities()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product of half-precision matrices to an fp32 sum on CUDA, in place."""
    if _adds_in_place(total.device, a.dtype):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += torch.mm(a, b, out_dtype=total.dtype)


@cache
def _adds_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch adds such a product to a sum of another dtype; older ones refuse."""
    total, half = torch.ones(8, 8, device=device), torch.ones(8, 8, device=device, dtype=dtype)
    try:
        torch.addmm(total, half, half, out_dtype=total.dtype, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == 9.0).all())


def rounding(device: torch.device, wanted: bool) -> AbstractContextManager[None]:
    """Let fp32 products round their operands to bf16 where that is fast, if `wanted`; bf16 values lose nothing."""
    return _rounded() if wanted and device.type == "cpu" and fast_bf16(device) else nullcontext()


@contextmanager
def _rounded() -> Iterator[None]:
    settings: Any = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    if settings is None:
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
