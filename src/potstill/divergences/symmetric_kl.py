"""Symmetric KL, (1-w) KL(p ‖ q) + w KL(q ‖ p): between covering and seeking modes.

`weight` is the share of reverse KL. DistiLLM's `symmetric_kl` is weight 0.9 (its `lam`), the weighted sum
compared in ABKD (Wang et al. 2025, arXiv:2505.04560) is weight 0.5. Inherits both infinities: wherever
one side has mass, so must the other.

Gradient by the student's logits: the same mixture of (q - p) / T and q (log(q / p) - KL(q ‖ p)) / T.
"""

from torch import Tensor

from potstill.divergences._math import compare, forward, require, reverse

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
EXAMPLES = ({"weight": 0.2},)


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, *, weight: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Symmetric KL in nats [N], and its partial (1-w) (q - p) + w q log(q / p) [N, K].

    Raises:
        RecipeError: weight lies outside (0, 1).
    """
    # The ends are left to forward_kl and reverse_kl: 0 times the other one's infinity is no number.
    require(0 < weight < 1, "symmetric_kl.weight", weight, "between 0 and 1, or use forward_kl or reverse_kl")
    pair = compare(student_lp, teacher_lp)
    (covering, gap), (seeking, flow) = forward(pair), reverse(pair)
    return (1 - weight) * covering + weight * seeking, (1 - weight) * gap + weight * flow
