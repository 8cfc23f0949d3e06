"""potstill distils large language models: teacher in, proven smaller student out.

Importing this package imports no torch; names load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from potstill import divergences as divergences
    from potstill.loss import DistillationLoss as DistillationLoss
    from potstill.models.heads import head_of as head_of
    from potstill.runs.run import RunResult as RunResult
    from potstill.runs.run import run as run

_LAZY = {
    "run": "potstill.runs.run",
    "RunResult": "potstill.runs.run",
    "DistillationLoss": "potstill.loss",
    "head_of": "potstill.models.heads",
}

__all__ = ["DistillationLoss", "RunResult", "__version__", "divergences", "head_of", "run"]


def __getattr__(name: str) -> Any:
    if name == "divergences":
        return importlib.import_module("potstill.divergences")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'potstill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
