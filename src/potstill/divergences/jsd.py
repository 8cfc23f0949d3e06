"""Generalised Jensen-Shannon divergence, β KL(p ‖ m) + (1-β) KL(q ‖ m) with m = β p + (1-β) q.

β is the teacher's share in the mixture, as in GKD (Agarwal et al. 2023, arXiv:2306.13649, eq. 1).
Bounded by the binary entropy of β, so finite on disjoint supports; between mode covering (small β) and
mode seeking (large β). Gradient by the student's logits: (1-β) q (log(q / m) - KL(q ‖ m)) / T.

The formula vanishes at both ends. β = 0 is therefore forward KL and β = 1 reverse KL, with or without
`normalize` (TRL does the same), and without it the step from β = 0.01 to 0 multiplies the loss by 100.
`normalize` divides by β (1-β), which makes the ends the limits, so β can be swept at one learning rate.

Other projects: TRL since 2025-03-13, `beta` = β; TRL SDFT and DistiLLM-2's gkd, alpha = β; DistiLLM's
js_distance and its fork in ABKD, lam = 1-β; DSKD, ½; earlier TRL equals no β. docs/losses.md has a table.
"""

import torch
from torch import Tensor

from potstill.divergences._math import compare, forward, mixture, require, reverse

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
EXAMPLES = ({"beta": 0.1}, {"beta": 0.9, "normalize": True}, {"beta": 0.0}, {"beta": 1.0})


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, *, beta: float = 0.5, normalize: bool = False
) -> tuple[Tensor, Tensor]:
    """JSD in nats [N], and its partial (1-β) q log(q / m) [N, K].

    Raises:
        RecipeError: beta lies outside [0, 1].
    """
    require(0 <= beta <= 1, "jsd.beta", beta, "in [0, 1]: the teacher's share in the mixture")
    if beta in (0, 1):
        kl = forward if beta == 0 else reverse
        return kl(compare(student_lp, teacher_lp))
    mix = mixture(student_lp, teacher_lp, beta)
    scale = 1 / (beta * (1 - beta)) if normalize else 1.0
    partial = mix.q_over_m().mul_(mix.q).mul_(scale * (1 - beta))
    terms = torch.addcmul(partial, mix.p, mix.p_over_m(), value=scale * beta)
    return terms.clamp_(min=0).sum(-1), partial
