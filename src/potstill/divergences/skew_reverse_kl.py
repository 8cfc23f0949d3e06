"""Skew reverse KL, KL(q ‖ m) with m = (1-α) p + α q: reverse KL that stays finite.

DistiLLM's SRKL (Ko, Kim, Chen & Yun 2024, arXiv:2402.03898): here α is the student's share in the mixture,
so q / m <= 1/α bounds the value by log 1/α even where the teacher has no mass. α = 0 is reverse KL.
DistiLLM's `lam` of `skewed_reverse_kl` is this α.

Gradient by the student's logits: q (g - Σ q g) / T with g = log(q/m) - α q/m. The code of
DistiLLM-2 (arXiv:2503.07067) holds m constant, which leaves g = log(q/m); here m moves, as in the formula.
"""

import torch
from torch import Tensor

from potstill.divergences._math import compare, mixture, require, reverse

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
EXAMPLES = ({"alpha": 0.5},)


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """Skew reverse KL in nats [N], and its partial q log(q/m) + α q (1 - q/m) = q log(q/m) - α (1-α) q (q - p)/m [N, K].

    Raises:
        RecipeError: alpha lies outside [0, 1).
    """
    require(0 <= alpha < 1, "skew_reverse_kl.alpha", alpha, "in [0, 1): the student's share in the mixture")
    if alpha == 0:
        return reverse(compare(student_lp, teacher_lp))
    mix = mixture(student_lp, teacher_lp, 1 - alpha)
    flow = mix.q * mix.q_over_m()
    # m - q sums to nothing, and makes each element non-negative.
    terms = flow.sub(mix.gap, alpha=1 - alpha).clamp(min=0)
    return terms.sum(-1), torch.addcmul(flow, mix.q, mix.tilt, value=-alpha * (1 - alpha))
