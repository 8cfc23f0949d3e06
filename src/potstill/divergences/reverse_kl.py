"""Reverse KL, KL(student ‖ teacher) = Σ q log(q / p): mode seeking.

The student must not put mass where the teacher has none. The objective of MiniLLM (Gu, Dong, Wei & Huang
2023, arXiv:2306.08543) and of on-policy distillation.

Gradient by the student's logits: q (log(q / p) - KL) / T. It is not bounded (one teacher log-probability
of -60 puts a factor of 60 on that id) and vanishes where the student has no mass, so a mode of the
teacher that the student lost is not found again by it. Infinite where the teacher has no mass and the
student has some: wrong for ids drawn from the teacher.
"""

from torch import Tensor

from potstill.divergences._math import compare, reverse

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 2
VANISHES = True
AVERAGE = "log_probabilities"  # of several teachers: Σ w KL(q ‖ p_k) is KL(q ‖ their product) and a constant


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Reverse KL in nats [N], and its partial q log(q / p) [N, K]."""
    return reverse(compare(student_lp, teacher_lp))
