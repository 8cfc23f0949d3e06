"""Forward KL, KL(teacher ‖ student) = Σ p log(p / q): mode covering.

The student must put mass wherever the teacher does. Known as knowledge distillation (Hinton, Vinyals &
Dean 2015, arXiv:1503.02531); its gradient equals that of soft cross-entropy, its value is smaller by the
teacher's entropy, so it is 0 at equality and comparable between temperatures.

Gradient by the student's logits: (q - p) / T, bounded. Infinite where the student has no mass and the
teacher has some. Linear in the teacher up to a constant, so the only KL that is unbiased (in its
gradient) on ids drawn from the teacher, and the one that reads the teacher's mean of a frozen head
alone. In `torch.nn.functional.kl_div(input, target)` the student's log-probabilities are `input`.
"""

from torch import Tensor

from potstill.divergences._math import compare, forward

SUPPORTS = frozenset({"dense", "topk", "sampled", "vector"})
TEMPERATURE_POWER = 2
VANISHES = True
TANGENT = True  # q - p sums to nothing: it is the gradient by the logits already


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Forward KL in nats [N], and its partial q - p [N, K], without cancellation where the two are close."""
    return forward(compare(student_lp, teacher_lp))
