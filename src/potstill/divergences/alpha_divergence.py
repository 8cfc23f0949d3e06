"""α-divergence, (1 - Σ p^α q^(1-α)) / (α (1-α)): one knob from reverse to forward KL.

α = 1 is forward KL (mode covering), α = 0 reverse KL (mode seeking), ½ four times the squared Hellinger
distance; any α is allowed (Amari 1985; for distillation AlphaNet, Wang et al. 2021, arXiv:2102.07954).
Inside (0, 1) it is finite on disjoint supports; α >= 1 is infinite where the student has no mass and the
teacher has some, α <= 0 the other way round.

Gradient by the student's logits: (q Σ p^α q^(1-α) - p^α q^(1-α)) / (α T). The line α + β = 1 of alpha_beta.
"""

import math

from torch import Tensor

from potstill.divergences import _math

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
EXAMPLES = ({"alpha": 0.2}, {"alpha": 0.0}, {"alpha": 1.0})


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor, *, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
    """α-divergence in nats [N], and its partial (q - p^α q^(1-α)) / α, and q log(q/p) at α = 0 [N, K].

    Raises:
        RecipeError: alpha is not finite.
    """
    _math.require(math.isfinite(alpha), "alpha_divergence.alpha", alpha, "a finite value, such as 0.5")
    return _math.alpha_beta(student_lp, teacher_lp, alpha, 1 - alpha)
