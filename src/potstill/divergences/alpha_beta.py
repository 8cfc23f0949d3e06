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
DISCLAIMS = {"merging": "with α + β > 1 merging two outcomes can increase it"}
EXAMPLES = (
    {"alpha": 1.0, "beta": 0.0},
    {"alpha": 0.0, "beta": 1.0},
    {"alpha": 0.0, "beta": 0.5},
    {"alpha": 0.6, "beta": 0.7},
)
COUNTEREXAMPLES = {
    "merging": ([0.084, 0.031, 0.346, 0.539], [0.962, 0.014, 0.004, 0.02], {"alpha": 0.6, "beta": 0.7}),
}


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.2, beta: float = 0.7
) -> tuple[Tensor, Tensor]:
    """αβ-divergence [N], and its partial (q^(α+β) - p^α q^β) / α [N, K].

    Raises:
        RecipeError: alpha or beta is negative, or both are 0.
    """
    _math.require(0 <= alpha < float("inf"), "alpha_beta.alpha", alpha, "at least 0")
    _math.require(0 <= beta < float("inf"), "alpha_beta.beta", beta, "at least 0")
    _math.require(alpha + beta > 0, "alpha_beta.beta", beta, "above 0, as alpha is 0")
    return _math.alpha_beta(student_lp, teacher_lp, alpha, beta)
