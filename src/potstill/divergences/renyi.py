"""Rényi divergence of order r, log Σ p^r q^(1-r) / (r-1), of the teacher from the student.

Rényi 1961. r = 1 is forward KL, r = 2 the log of the χ² sum (punishes lost modes harder), small r forgives
them; it grows with r. For r < 1 infinite only on disjoint supports, for r >= 1 wherever the student has no
mass and the teacher has some. r > 0: the order 0 does not see how mass is spread.

Gradient by the student's logits: (q - w) / T with w = p^r q^(1-r) / Σ p^r q^(1-r), bounded.
"""

import torch
from torch import Tensor

from potstill.divergences import _math

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
TANGENT = True
EXAMPLES = ({"r": 2.0}, {"r": 1.0})


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor, *, r: float = 0.5) -> tuple[Tensor, Tensor]:
    """Rényi divergence in nats [N], and its partial q - w [N, K].

    Raises:
        RecipeError: r is not positive and finite.
    """
    _math.require(0 < r < float("inf"), "renyi.r", r, "above 0")
    if r == 1:
        return _math.forward(_math.compare(student_lp, teacher_lp))
    d = student_lp - teacher_lp.clamp(min=_math.FLOOR)
    powers = (teacher_lp + (1 - r) * d).masked_fill(teacher_lp == float("-inf"), float("-inf"))
    log_sum = powers.logsumexp(-1, keepdim=True)
    # Near equality the sum is 1 minus something small, which the α-divergence knows without cancellation.
    near = log_sum.abs() < 0.5
    # Rows that are far compare the teacher with itself there: an overflow would reach their gradient.
    close = torch.where(near, student_lp, teacher_lp)
    missing = r * (1 - r) * _math.alpha_beta(close, teacher_lp, r, 1 - r)[0]
    log_total = torch.where(near.squeeze(-1), torch.log1p(-missing), log_sum.squeeze(-1))
    partial = _math.difference(student_lp.exp(), (powers - log_sum).exp(), r * d + log_sum)
    return log_total / (r - 1), partial
