"""A divergence from outside the package."""

from __future__ import annotations

from torch import Tensor

SUPPORTS = frozenset({"dense"})
VANISHES = True


def bhattacharyya(student_lp: Tensor, teacher_lp: Tensor, *, scale: float = 1.0) -> Tensor:
    """-log Σ √(p q), [N]."""
    return -scale * ((student_lp + teacher_lp) / 2).logsumexp(-1)
