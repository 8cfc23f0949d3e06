"""Adaptive KL (AKL), (a KL(p ‖ q) + b KL(q ‖ p)) / (a + b) per token: more weight where the fit is worse.

a is Σ |p - q| over the teacher's head, b over its tail, both held constant in the gradient. The head is the
most likely ids while their cumulative teacher probability stays within `head_mass` (μ = 0.5), and always the
most likely one. Forward KL fits the head first, reverse KL the tail (Wu et al. 2024, arXiv:2404.02657).

0 at equality, where a + b = 0. Ids as likely as the last one of the head belong to it, so that the order of
ids plays no part. Gradient by the student's logits: the same mixture of the gradients of the two KLs.
DSKD puts the id that crosses μ into the head; the authors' code does not.

With stored ids the bucket always belongs to the tail, however much mass it holds: the caller says by `tail`
that the last column is one.
"""

import torch
from torch import Tensor

from potstill.divergences._math import blend, compare, require

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
DISCLAIMS = {
    "merging": "merging outcomes moves mass between head and tail, and with it the weights of the two KLs"
}
EXAMPLES = ({"head_mass": 0.8},)
COUNTEREXAMPLES = {"merging": ([0.481, 0.505, 0.006, 0.008], [0.42, 0.075, 0.315, 0.19])}


def value_and_partial(
    student_lp: Tensor, teacher_lp: Tensor, tail: bool = False, *, head_mass: float = 0.5
) -> tuple[Tensor, Tensor]:
    """AKL in nats [N], and its partial (a (q - p) + b q log(q/p)) / (a + b) [N, K].

    `tail` says that the last column is a tail bucket.

    Raises:
        RecipeError: head_mass lies outside (0, 1).
    """
    require(0 < head_mass < 1, "adaptive_kl.head_mass", head_mass, "between 0 and 1")
    pair = compare(student_lp, teacher_lp)
    head = _head(pair.p.detach(), tail, head_mass)
    misfit = pair.gap.detach().abs()
    a = torch.where(head, misfit, 0.0).sum(-1, keepdim=True)
    b = torch.where(head, 0.0, misfit).sum(-1, keepdim=True)
    whole = torch.where(a + b > 0, a + b, 1.0)
    return blend(pair, a / whole, b / whole)


def _head(p: Tensor, tail: bool, head_mass: float) -> Tensor:
    """[N, K] bool; with `tail` the last column never belongs to the head."""
    if tail:
        p = torch.cat([p[:, :-1], torch.full_like(p[:, -1:], -1.0)], -1)
    ranked = p.sort(-1, descending=True).values
    count = (ranked.clamp(min=0).cumsum(-1) <= head_mass).sum(-1, keepdim=True).clamp(min=1)
    return (p >= ranked.gather(-1, count - 1)) & (p >= 0)
