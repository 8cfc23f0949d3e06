"""Centred logit MSE, the mean over ids of ((z - z̄) - (t - t̄))²: every id counts the same.

Centring removes the shift that a softmax cannot see, so log-probabilities serve as logits. T² times
forward or reverse KL tends to half of it as T grows (Hinton, Vinyals & Dean 2015, arXiv:1503.02531; Kim et al.
2021, arXiv:2105.08919).
The mean runs over the ids that are not -inf; one that is -inf on one side only makes it infinite.

Gradient by the student's logits: 2 ((z - z̄) - (t - t̄)) / (V T). Needs the whole vocabulary: unlikely ids,
which a bucket hides, make most of it. The unit is logits squared, not nats.
"""

import torch
from torch import Tensor

SUPPORTS = frozenset({"dense"})
TEMPERATURE_POWER = 0
VANISHES = True
TANGENT = True
DISCLAIMS = {
    "merging": "a merged outcome has another logit and another share in the mean",
    "appending": "an id of negligible probability still has a logit, and moves the means",
}
COUNTEREXAMPLES = {"merging": ([0.007, 0.779, 0.138, 0.076], [0.568, 0.008, 0.166, 0.258])}


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Centred MSE in logits squared [N], and its partial 2 ((z - z̄) - (t - t̄)) / V [N, K]."""
    student_dead, teacher_dead = student_lp == float("-inf"), teacher_lp == float("-inf")
    used = ~(student_dead | teacher_dead)
    count = used.sum(-1, keepdim=True).clamp(min=1)
    difference = torch.where(used, student_lp - teacher_lp, 0.0)
    centred = torch.where(used, difference - difference.sum(-1, keepdim=True) / count, 0.0)
    mean = centred.square().sum(-1) / count.squeeze(-1)
    one_sided = (student_dead != teacher_dead).any(-1)
    return mean.masked_fill(one_sided, float("inf")), 2 * centred / count
