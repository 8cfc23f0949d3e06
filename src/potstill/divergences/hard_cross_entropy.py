"""Hard cross-entropy, -log q of one label: plain language modelling, not a distance of two distributions.

The teacher is a one-hot (0 at the label, -inf elsewhere) and this is soft cross-entropy against it. Of a
teacher that is not one-hot it takes the most likely outcome as the label. No power of T belongs to it.

Gradient by the student's logits: (q - onehot) / T.
"""

import torch
from torch import Tensor

SUPPORTS = frozenset({"dense"})
TEMPERATURE_POWER = 0
VANISHES = False
TANGENT = True
DISCLAIMS: dict[str, str] = {
    "at_equality": "of a teacher that is not one-hot it sees the label only",
    "only_at_equality": "certainty of the label scores 0 whatever the teacher's other ids say",
    "merging": "merging unlikely outcomes can make their bucket the label",
    "quadratic": "it tends to log V as T grows",
}


def value(student_lp: Tensor, teacher_lp: Tensor) -> Tensor:
    """Cross-entropy of the label in nats, [N] from two [N, K]."""
    return -student_lp.gather(-1, teacher_lp.argmax(-1, keepdim=True)).squeeze(-1)


def partial(student_lp: Tensor, teacher_lp: Tensor) -> Tensor:
    """q - onehot, [N, K]."""
    label = teacher_lp.argmax(-1, keepdim=True)
    return student_lp.exp().scatter_add(-1, label, -torch.ones_like(student_lp[:, :1]))
