"""A device without float64, simulated on the CPU: every tensor is on it unless it was moved to the host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from potstill.devices import exact


class NoFloat64(TorchFunctionMode):
    """Refuse float64 on the device, and tensors of both places in one call.

    On the host are tensors that were moved there (`.cpu()`, `.to(exact.HOST)`) or made without naming a device,
    and what is computed from them alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crossed = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not made or getattr(func, "__name__", "") == "__get__":
            return result
        if func in (Tensor.cpu, Tensor.to) and (host := _target(func, args, kwargs)) is not None:
            (moved,) = made
            assert host or moved.dtype != torch.float64, "float64 moved to the device"
            self.crossed += host and not on_host(given[0])
            return marked(moved.clone() if moved is given[0] else moved, host)
        if not given:  # a factory
            host = kwargs.get("device") in (None, "cpu") or kwargs["device"] is exact.HOST
        else:
            places = {on_host(tensor) for tensor in given if tensor.ndim or tensor.dtype == torch.float64}
            assert len(places) < 2, f"{func} mixes tensors of the device and of the host"
            host = all(map(on_host, given))
        for tensor in made:
            assert host or tensor.dtype != torch.float64, f"{func} makes float64 on the device"
            marked(tensor, host)
        return result


def _target(func: Any, args: Any, kwargs: Any) -> bool | None:
    """Whether a move goes to the host; None where only the dtype changes."""
    if func is Tensor.cpu:
        return True
    for wanted in (*args[1:], *kwargs.values()):
        if isinstance(wanted, Tensor):
            return on_host(wanted)
        if isinstance(wanted, torch.device | str):
            return wanted is exact.HOST or wanted == "cpu"
    return None


def on_host(tensor: Tensor) -> bool:
    return getattr(tensor, "_on_host", False)


def marked(tensor: Tensor, host: bool) -> Tensor:
    tensor._on_host = host  # type: ignore[attr-defined]
    return tensor


@contextmanager
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[NoFloat64]:
    """Work on a device like Apple's: the CPU's tensors, without float64."""
    with monkeypatch.context() as patch:
        patch.setattr(exact, "WITHOUT_FLOAT64", frozenset({"cpu"}))
        with NoFloat64() as mode:
            yield mode
