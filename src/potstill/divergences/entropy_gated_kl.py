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

from potstill.divergences._math import blend, compare, product, require

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
DISCLAIMS = {"merging": "merging outcomes lowers the teacher's entropy, which can switch to a larger KL"}
EXAMPLES = ({"threshold": 0.5, "keep_reverse": True},)
COUNTEREXAMPLES = {"merging": ([0.026, 0.91, 0.045, 0.019], [0.237, 0.007, 0.323, 0.433])}


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, *, threshold: float = 1.0, keep_reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Gated KL in nats [N], and its partial q - p on uncertain tokens, q log(q/p) on the others [N, K].

    Raises:
        RecipeError: threshold is negative.
    """
    require(threshold >= 0, "entropy_gated_kl.threshold", threshold, "in nats, at least 0")
    pair = compare(student_lp, teacher_lp)
    entropy = -product(pair.p, teacher_lp).sum(-1, keepdim=True).detach()
    cover = (entropy >= threshold).to(pair.p.dtype)
    return blend(pair, cover, torch.ones_like(cover) if keep_reverse else 1 - cover)
