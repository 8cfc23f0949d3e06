"""Losses, numbers and counted memory that the tests of the loss share."""

from __future__ import annotations

import importlib
import weakref
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from potstill.objectives.token import Divergence, TokenLoss


def module(name: str) -> Any:
    """The plug-in module of a divergence."""
    return importlib.import_module(f"potstill.divergences.{name}")


def divergence(name: str, **options: Any) -> Divergence:
    """A divergence with its options."""
    return Divergence.from_module(module(name), options)


def token_loss(name: str = "forward_kl", temperature: float = 1.0, **settings: Any) -> TokenLoss:
    """The token objective with a divergence of default options."""
    return TokenLoss(divergence(name), temperature, **settings)


def outside_divergence(name: str, value: Any, **constants: Any) -> Divergence:
    """A divergence that this package does not have, given by its formula alone."""
    plugin = ModuleType(f"tests.{name}")
    vars(plugin).update(value=value, **constants)
    return Divergence.from_module(plugin)


def _forward_kl(student_lp: Tensor, teacher_lp: Tensor) -> Tensor:
    """Forward KL without a partial of its own: autograd steps in."""
    p = teacher_lp.exp()
    d = torch.where(p > 0, student_lp - teacher_lp, torch.zeros_like(p))
    return torch.where(p > 0, p * (torch.expm1(d) - d), student_lp.exp()).sum(-1)


BY_AUTOGRAD = outside_divergence(
    "forward_kl", _forward_kl, SUPPORTS={"dense", "topk", "sampled"}, TEMPERATURE_POWER=2, VANISHES=True
)
"""Forward KL, with a gradient from autograd."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on shape and seed alone: the same ones in every dtype, rounded."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Living(TorchDispatchMode):
    """Bytes of all tensors made inside that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = _storages((args, kwargs))  # views of what was made outside are not made inside
        for key, storage in _storages(out).items():
            if key not in self._sizes and key not in given:
                self._sizes[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, key)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _storages(values: Any) -> dict[int, torch.UntypedStorage]:
    storages = (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
    return {storage._cdata: storage for storage in storages}
