"""Logit standardisation, τ² KL(softmax(t̂ / τ) ‖ softmax(ẑ / τ)), x̂ = (x - mean) / std: shape, not scale.

Sun et al. 2024 (CVPR, arXiv:2403.01427); τ = `base_temperature`, the paper's λ is the weight of the term. It
frees the student from the teacher's logit scale, and so teaches nothing of its confidence: twice the
teacher's logits score 0. Use it as an auxiliary term only. Mean and (population) std run over the ids that
are not -inf; the vocabulary must be the true one, and whole.

Gradient by the student's logits: by autograd, through the mean and the std. The temperature of the support
cancels, so no power of T belongs to it.
"""

import torch
from torch import Tensor

from potstill.divergences._math import compare, forward, require

SUPPORTS = frozenset({"dense"})
TEMPERATURE_POWER = 0
VANISHES = True
DISCLAIMS = {
    "only_at_equality": "logits and any positive multiple of them are the same to it",
    "merging": "merging changes the logits' mean and std",
    "appending": "an id of negligible probability still has a logit, and moves mean and std",
    "quadratic": "it does not depend on the temperature",
}
COUNTEREXAMPLES = {
    "only_at_equality": ([1.0, 2.0, 4.0], [1.0, 4.0, 16.0]),
    "merging": ([0.406, 0.394, 0.087, 0.113], [0.306, 0.299, 0.191, 0.204]),
}

_EPSILON = 1e-7


def value(student_lp: Tensor, teacher_lp: Tensor, *, base_temperature: float = 2.0) -> Tensor:
    """Standardised KL in nats times τ², [N] from two [N, K].

    Raises:
        RecipeError: base_temperature is not positive and finite.
    """
    tau = base_temperature
    require(0 < tau < float("inf"), "standardized_logits.base_temperature", tau, "above 0")
    student = torch.log_softmax(_standardise(student_lp) / tau, -1)
    teacher = torch.log_softmax(_standardise(teacher_lp) / tau, -1)
    return tau**2 * forward(compare(student, teacher))[0]


def _standardise(lp: Tensor) -> Tensor:
    used = lp != float("-inf")
    count = used.sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(used, lp, 0.0).sum(-1, keepdim=True) / count
    centred = torch.where(used, lp - mean, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / count + _EPSILON**2).sqrt()
    return (centred / std).masked_fill(~used, float("-inf"))
