"""Divergences between a teacher's and a student's next-token distribution, one file each.

`potstill.divergences.jsd.value(student_lp, teacher_lp, beta=0.1)`: a file of this folder without a
leading underscore is a divergence; there is no registry. Each file defines either

- `value(student_lp, teacher_lp, *, options) -> [N]` nats, from two [N, K] log-probabilities on one
  shared support (-inf is allowed; the last column may be a tail bucket), differentiable by autograd; or
- `value_and_partial(...) -> ([N], [N, K])`, the same value and its derivative by each student
  log-probability. The derivative by the student's logits is (partial - softmax * sum(partial)) / T, so
  partials may differ by a multiple of the student's softmax. `value` is then added when this package loads.

An argument `tail`, if there is one, says whether the last column is a tail bucket. Constants say what the
family needs:

- `SUPPORTS`, the signals it is right for: "dense", "topk" (stored ids and a tail bucket), "sampled", "vector" (a mean
  over a frozen student head: forward KL alone);
- `TEMPERATURE_POWER`, k of the factor T^k that keeps its balance with a hard-label term;
- `VANISHES`, whether it is zero at equality;
- `TANGENT`, optional: its partial sums to 0 over the outcomes, which spares the way back to logits a pass;
- `EXAMPLES`, optional: options besides the defaults with which the tests of the laws evaluate it;
- `DISCLAIMS`, optional: the laws it does not obey, each with the reason, and `COUNTEREXAMPLES`: probabilities
  of student and teacher, up to their sums, and options, where the law does not say how it breaks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

__all__ = ["names"]


def names() -> tuple[str, ...]:
    """Every divergence, by file name."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def _value_of(module: Any) -> Callable[..., Tensor]:
    @wraps(module.value_and_partial)
    def value(*args: Any, **options: Any) -> Tensor:
        return module.value_and_partial(*args, **options)[0]

    value.__annotations__ = {**module.value_and_partial.__annotations__, "return": Tensor}
    return value


def __getattr__(name: str) -> ModuleType:
    raise AttributeError(f"no divergence is called {name!r}; known: {', '.join(names())}")


for _name in names():
    _module: Any = importlib.import_module(f"{__name__}.{_name}")
    if not hasattr(_module, "value"):
        _module.value = _value_of(_module)
