"""αβ-divergence, -1/(αβ) Σ [p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β)]: what ABKD tunes.

α weighs hardness (where the two differ), β confidence (where the student is sure). (1, 0) is forward KL,
(0, 1) reverse KL, (½, ½) four times the squared Hellinger distance, α + β = 1 the α-divergence. Cichocki,
Cruces & Amari 2011; for distillation ABKD (Wang et al. 2025, arXiv:2505.04560), whose GPT-2 setting
(0.2, 0.7) is the default.

Gradient by the student's logits: (w - q Σ w) / T with w = (q^(α+β) - p^α q^β) / α, and q^β log(q/p) at α = 0.
The limits carry 1/β² (α = 0) and 1/α² (β = 0); the code of ABKD has 1/β and 1/α there, twice too small at ½.
Near equality it is V^(1-α-β) times a KL, so values at different α + β do not compare. α, β >= 0, not both 0.
"""

from torch import Tensor

from potstill.divergences import _math

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
ADDITIVE = True
DISCLAIMS: dict[str, str] = {"merging": "with α + β > 1 merging two outcomes can increase it"}


def value(student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """αβ-divergence, [N] from two [N, K].

    Raises:
        RecipeError: alpha or beta is negative, or both are 0.
    """
    return value_and_partial(student_lp, teacher_lp, alpha=alpha, beta=beta)[0]


def partial(student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.2, beta: float = 0.7) -> Tensor:
    """(q^(α+β) - p^α q^β) / α, [N, K]."""
    return value_and_partial(student_lp, teacher_lp, alpha=alpha, beta=beta)[1]


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.2, beta: float = 0.7
) -> tuple[Tensor, Tensor]:
    """Both at once."""
    _math.require(0 <= alpha < float("inf"), "alpha_beta.alpha", alpha, "at least 0")
    _math.require(0 <= beta < float("inf"), "alpha_beta.beta", beta, "at least 0")
    _math.require(alpha + beta > 0, "alpha_beta.beta", beta, "above 0, as alpha is 0")
    terms, partial = _math.alpha_beta(student_lp, teacher_lp, alpha, beta)
    return terms.sum(-1), partial
