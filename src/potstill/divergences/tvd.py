"""Total variation distance, ½ Σ |p - q|: the largest difference in the probability of any event.

In [0, 1] (a share, not nats); 1 - TVD is the acceptance rate of speculative decoding, Σ min(p, q). Used for
distillation by f-DISTILL (Wen, Li, Du & Mou 2023, arXiv:2307.15190).

Gradient by the student's logits: ½ q (s - Σ q s) / T with s = sign(q - p), 0 at ties. Bounded, but tiny when
the student is nearly certain of a wrong token; a kink at equality. Scales as 1/T, not 1/T².
"""

from torch import Tensor

from potstill.divergences._math import compare

SUPPORTS = frozenset({"dense", "topk"})
TEMPERATURE_POWER = 1
VANISHES = True
DISCLAIMS = {"quadratic": "linear near equality: T times TVD tends to half the mean |difference|"}


def value_and_partial(student_lp: Tensor, teacher_lp: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation [N], in [0, 1], and its partial ½ q sign(q - p) [N, K]."""
    pair = compare(student_lp, teacher_lp)
    return 0.5 * pair.gap.abs().sum(-1), 0.5 * pair.q * pair.gap.sign()
