"""Divergences between a teacher's and a student's next-token distribution, one file each.

`potstill.divergences.jsd.value(student_lp, teacher_lp, beta=0.1)`: a file of this folder without a
leading underscore is a divergence; there is no registry. Each file defines

- `value(student_lp, teacher_lp, *, options) -> [N]` nats, from two [N, K] log-probabilities on one
  shared support (-inf is allowed; the last column may be a tail bucket), differentiable by autograd;
- optionally `partial(...) -> [N, K]`, the derivative of the value by each student log-probability, and
  `value_and_partial(...)`, both at the price of one. The derivative by the student's logits is
  (partial - softmax * sum(partial)) / T, so partials may differ by a multiple of the student's softmax;
- `SUPPORTS`, the signals it is right for: "dense", "topk" (stored ids and a tail bucket), "sampled";
- `TEMPERATURE_POWER`, k of the factor T^k that keeps its balance with a hard-label term;
- `VANISHES`, whether it is zero at equality;
- `TANGENT`, optional: its partial sums to 0 over the outcomes, which spares the way back to logits a pass;
- `ADDITIVE`, optional: the value is a sum over the outcomes, so it can be added up tile by tile;
- `DISCLAIMS`, the laws it does not obey, each with the reason.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from potstill.divergences._aliases import ALIASES, translate

__all__ = ["ALIASES", "names", "translate"]


def names() -> tuple[str, ...]:
    """Every divergence, by file name."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def __getattr__(name: str) -> ModuleType:
    if name in names():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"no divergence is called {name!r}; known: {', '.join(names())}")


def __dir__() -> list[str]:
    return sorted([*__all__, *names()])
