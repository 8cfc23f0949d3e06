"""Memory that stays flat over a training, however the lengths of its batches differ."""

from __future__ import annotations

import os

KERNELS = "64"  # of one optimizer step, so that its blocks share them


def bound_caches() -> None:
    """Let a CPU's libraries keep the kernels of few shapes; call it before the first matrix product.

    oneDNN generates code for every shape that it multiplies in bf16, and two caches of 1,024 entries keep it. With
    lengths that differ in every batch all of them are new, and a training grows by hundreds of megabytes.
    A number in the environment is left as it is.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, KERNELS)
