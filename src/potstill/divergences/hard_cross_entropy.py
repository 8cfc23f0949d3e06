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
DISCLAIMS = {
    "at_equality": "of a teacher that is not one-hot it sees the label only",
    "only_at_equality": "certainty of the label scores 0 whatever the teacher's other ids say",
    "merging": "merging unlikely outcomes can make their bucket the label",
    "quadratic": "it tends to log V as T grows",
}
COUNTEREXAMPLES = {
    "only_at_equality": ([1.0, 0.0], [0.6, 0.4]),
    "merging": ([0.021, 0.967, 0.005, 0.007], [0.317, 0.338, 0.18, 0.165]),
}


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the label in nats [N], and its partial q - onehot [N, K]."""
    label = teacher_lp.argmax(-1, keepdim=True)
    value = -student_lp.gather(-1, label).squeeze(-1)
    return value, student_lp.exp().scatter_add(-1, label, -torch.ones_like(student_lp[:, :1]))
