"""TAID, KL(r ‖ q) with r = softmax((1-t) sg(z_student) + t z_teacher): a target that moves to the teacher.

Temporally adaptive interpolated distillation (Shing et al. 2025, arXiv:2501.16937): `t` grows to 1 over
training (the paper starts at 0.4), so that a small student first meets a target near itself. At t = 1 it is
forward KL. sg stops the gradient; r is formed from log-probabilities, which equal logits up to a constant.

Gradient by the student's logits: (q - r) / T. Infinite only where r has mass and the student none, which
t < 1 excludes; where the supports are disjoint there is no r, and the value is not a number. On stored ids
the bucket is interpolated as one outcome.
"""

import torch
from torch import Tensor

from potstill.divergences._math import compare, forward, require

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
TANGENT = True
DISCLAIMS = {"merging": "the interpolated target of merged outcomes is not the merged interpolated target"}
EXAMPLES = ({"t": 1.0}, {"t": 0.2})
COUNTEREXAMPLES = {"merging": ([0.077, 0.883, 0.036, 0.004], [0.092, 0.077, 0.041, 0.79])}


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor, *, t: float = 0.5) -> tuple[Tensor, Tensor]:
    """TAID in nats [N], and its partial q - r [N, K].

    Raises:
        RecipeError: t lies outside (0, 1].
    """
    require(0 < t <= 1, "taid.t", t, "in (0, 1]: the teacher's share in the target")
    target = teacher_lp
    if t < 1:
        target = torch.log_softmax((1 - t) * student_lp.detach() + t * teacher_lp, -1)
    return forward(compare(student_lp, target))
