"""Squared Hellinger distance, ½ Σ (√p - √q)² = 1 - Σ √(p q): bounded and symmetric.

In [0, 1], finite on disjoint supports; a quarter of the α-divergence at ½ and of αβ at (½, ½). The ½ is
part of the definition (Hellinger 1909). Gradient by the student's logits: ½ (q Σ √(p q) - √(p q)) / T.
"""

from torch import Tensor

from potstill.divergences._math import compare

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Squared Hellinger distance [N], in [0, 1], and its partial ½ √q (√q - √p) [N, K]."""
    roots = compare(student_lp / 2, teacher_lp / 2)
    return 0.5 * roots.gap.square().sum(-1), 0.5 * roots.q * roots.gap
