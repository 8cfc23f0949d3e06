"""Skew KL, KL(p ‖ m) with m = α p + (1-α) q: forward KL that stays finite.

DistiLLM's SKL (Ko, Kim, Chen & Yun 2024, arXiv:2402.03898): α is the teacher's share put into the second
argument, so p / m <= 1/α bounds value (log 1/α) and gradient. α = 0 is forward KL. DistiLLM's `lam` of
`skewed_forward_kl` is this α; the skewed KL of "0.9 student + 0.1 teacher" is α = 0.1.

Gradient by the student's logits: (1-α) q (Σ q p/m - p/m) / T.
"""

from torch import Tensor

from potstill.divergences._math import compare, forward, mixture, require

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
EXAMPLES = ({"alpha": 0.5},)


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.1) -> tuple[Tensor, Tensor]:
    """Skew KL in nats [N], and its partial (1-α) q (1 - p/m) = (1-α)² q (q - p)/m [N, K].

    Raises:
        RecipeError: alpha lies outside [0, 1).
    """
    require(0 <= alpha < 1, "skew_kl.alpha", alpha, "in [0, 1): the teacher's share in the mixture")
    if alpha == 0:
        return forward(compare(student_lp, teacher_lp))
    mix = mixture(student_lp, teacher_lp, alpha)
    # m - p sums to nothing, and makes each element non-negative.
    terms = (mix.p * mix.p_over_m()).add(mix.gap, alpha=1 - alpha).clamp(min=0)
    return terms.sum(-1), (1 - alpha) ** 2 * mix.q * mix.tilt
