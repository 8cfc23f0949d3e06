"""Tokens weigh by their place in the answer: half as much every `half_life` tokens.

The start of an answer decides where the rest goes, and a teacher judges a student's own text best while
it is short. `floor` is what the end of a long answer keeps.
"""

from __future__ import annotations

from torch import Tensor

from potstill.divergences._math import require

SUPPORTS = frozenset({"dense", "topk", "sampled"})


def weights(
    student_lp: Tensor, teacher_lp: Tensor, place: Tensor, *, half_life: float = 64.0, floor: float = 0.0
) -> Tensor:
    """floor + (1 - floor) 2^(-place / half_life), [N].

    Raises:
        RecipeError: half_life is not above 0, or floor lies outside [0, 1].
    """
    require(half_life > 0, "position.half_life", half_life, "above 0: tokens until a weight is halved")
    require(0 <= floor <= 1, "position.floor", floor, "in [0, 1]: the weight of a token far from the start")
    return floor + (1 - floor) * (-place.to(student_lp.dtype) / half_life).exp2()
