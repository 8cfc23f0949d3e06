"""A function on rows of a vocabulary's width, compiled: a few kernels in place of some fifty passes over the logits.

On a GPU every pass of an eager operation reads and writes all logits, and the passes together take longer than the
head's matrix products. `torch.compile` makes the same formulas one kernel for each sum over a row. It is compiled
once: the number of rows is free, the vocabulary is fixed. What moves besides (an option on a schedule, a validation's
figures) compiles anew at most as often as torch allows (`torch._dynamo.config.recompile_limit`, 8).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("potstill")

# Log-probabilities are made anew from the logits where they are read: a tensor of a chunk's size costs more.
RECOMPUTE: dict[str, Any] = {"realize_reads_threshold": 16, "realize_opcount_threshold": 256}
LEAST_ROWS = 2  # torch compiles a single row by itself


class Compiled:
    """`function(settings, logits [c, V], *others [c, ...])`, which may write into the logits, compiled at its first call.

    Where that fails, that call and all later ones run the function as it is, after one warning.
    """

    def __init__(self, function: Callable[..., Any], backend: str = "inductor") -> None:
        self._function, self._backend = function, backend
        self._compiled: Callable[..., Any] | None = (
            None  # from the first call on: the compiler loads for seconds
        )
        self.works: bool | None = None  # None before the first call

    def __call__(self, settings: Any, logits: Tensor, *others: Tensor | None) -> Any:
        """The function's result, for any number of rows."""
        if self.works is False or logits.shape[0] < LEAST_ROWS:
            return self._function(settings, logits, *others)
        # A failure behind the first kernel would have changed the logits; later ones come before any kernel runs.
        kept = logits.clone() if self.works is None else None
        try:
            self._compiled = self._compiled or self._made()
            for tensor in (logits, *others):
                if tensor is not None:
                    torch._dynamo.mark_dynamic(tensor, 0)
            result = self._compiled(settings, logits, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of torch, a C compiler or a driver: the formulas stand in any case
            self.works = False
            reason = " ".join(str(error).split())[:300]
            log.warning(
                "the loss is not compiled and runs as it is, more slowly: %s: %s … Set compile: false to leave it out.",
                type(error).__name__,
                reason,
            )
            if kept is not None:
                logits.copy_(kept)
            return self._function(settings, logits, *others)
        self.works = True
        return result

    def _made(self) -> Callable[..., Any]:
        # A graph that breaks would run as slowly as before, so it is a failure. Dynamic are the rows alone, by mark:
        # another vocabulary gets kernels of its own.
        options = RECOMPUTE if self._backend == "inductor" else None
        return torch.compile(
            self._function, fullgraph=True, dynamic=False, backend=self._backend, options=options
        )


def why_not(device: torch.device) -> str | None:
    """Why the loss cannot be compiled for a device, in words; None where it can."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    compilers = [os.environ.get("CC"), os.environ.get("CXX"), "gcc", "clang", "g++"]
    if not any(name and shutil.which(name) for name in compilers):
        return "there is no C compiler"
    return None
