"""Entropy-gated KL: forward KL where the teacher is uncertain, reverse KL where it is sure.

The gate is the teacher's entropy H(p) on the support, `threshold` in nats (H >= threshold: uncertain); it
belongs to the teacher alone, so no gradient passes through it. Reverse KL keeps rollouts precise, forward KL
keeps their diversity where many continuations are plausible. After entropy-aware on-policy distillation (Jin
et al. 2026, arXiv:2603.07079), which adds forward KL to reverse KL on those tokens: `keep_reverse` does that.

On stored ids the bucket counts as one outcome, which lowers H. Gradient by the student's logits: that of the
KL that is chosen.
"""

import torch
from torch import Tensor

from potstill.divergences._math import compare, forward, product, require, reverse

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
DISCLAIMS: dict[str, str] = {
    "merging": "merging outcomes lowers the teacher's entropy, which can switch to a larger KL"
}


def value(
    student_lp: Tensor, teacher_lp: Tensor, *, threshold: float = 1.0, keep_reverse: bool = False
) -> Tensor:
    """Gated KL in nats, [N] from two [N, K].

    Raises:
        RecipeError: threshold is negative.
    """
    return value_and_partial(student_lp, teacher_lp, threshold=threshold, keep_reverse=keep_reverse)[0]


def partial(
    student_lp: Tensor, teacher_lp: Tensor, *, threshold: float = 1.0, keep_reverse: bool = False
) -> Tensor:
    """q - p on uncertain tokens, q log(q/p) on the others, [N, K]."""
    return value_and_partial(student_lp, teacher_lp, threshold=threshold, keep_reverse=keep_reverse)[1]


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, *, threshold: float = 1.0, keep_reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Both at once."""
    require(threshold >= 0, "entropy_gated_kl.threshold", threshold, "in nats, at least 0")
    pair = compare(student_lp, teacher_lp)
    entropy = -product(pair.p, teacher_lp).sum(-1, keepdim=True).detach()
    cover = (entropy >= threshold).to(pair.p.dtype)
    seek = torch.ones_like(cover) if keep_reverse else 1 - cover
    (covering, gap), (seeking, flow) = forward(pair), reverse(pair)
    mixed = product(cover, covering.sum(-1, keepdim=True)) + product(seek, seeking.sum(-1, keepdim=True))
    return mixed.squeeze(-1), product(cover, gap) + product(seek, flow)
