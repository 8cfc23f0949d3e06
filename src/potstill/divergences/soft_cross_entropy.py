"""Soft cross-entropy, -Σ p log q: forward KL plus the teacher's entropy.

Same gradient as forward KL, another value: H(p) at equality, so it is no distance and its values do not
compare with KL values, nor between temperatures. Often called "KL" or "reverse KL" elsewhere; it is neither.
Linear in the teacher, so unbiased on ids drawn from it (Hinton, Vinyals & Dean 2015, arXiv:1503.02531).

Gradient by the student's logits: (q - p) / T.
"""

from torch import Tensor

from potstill.divergences._math import compare, product

SUPPORTS = frozenset({"dense", "topk", "sampled"})
TEMPERATURE_POWER = 2
VANISHES = False
TANGENT = True
DISCLAIMS = {
    "at_equality": "it is the teacher's entropy there",
    "quadratic": "it tends to log V as T grows",
}


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Soft cross-entropy in nats [N], and its partial q - p [N, K], without cancellation where the two are close."""
    return product(teacher_lp.exp(), -student_lp).sum(-1), compare(student_lp, teacher_lp).gap
