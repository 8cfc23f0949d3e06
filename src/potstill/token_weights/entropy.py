"""Tokens weigh by how uncertain one side is: the entropy as a share of its highest, log K.

K counts the outcomes that either side gives mass; places of stored ids that hold none are no outcomes.

At full spread 1 and at certainty `floor`; `certain` turns it round. Uncertain tokens are where answers
fork and where most of the teacher's knowledge beyond the text is; a `floor` keeps the easy ones learnt.
With stored ids the bucket counts as one outcome, so the entropy is a lower bound.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, inf

from potstill.divergences._math import product, require

SUPPORTS = frozenset({"dense", "topk"})  # drawn ids show their own spread, not the teacher's


def weights(
    student_lp: Tensor,
    teacher_lp: Tensor,
    place: Tensor,
    *,
    of: Literal["teacher", "student"] = "teacher",
    floor: float = 0.1,
    certain: bool = False,
) -> Tensor:
    """floor + (1 - floor) H / log K, [N].

    Raises:
        RecipeError: floor lies outside [0, 1].
    """
    require(0 <= floor <= 1, "entropy.floor", floor, "in [0, 1]: the weight of the least important token")
    lp = teacher_lp if of == "teacher" else student_lp
    outcomes = (student_lp > -inf).logical_or_(teacher_lp > -inf).sum(-1).clamp(min=2)
    share = (-product(lp.exp(), lp).sum(-1) / outcomes.to(lp.dtype).log()).clamp(0, 1)
    return floor + (1 - floor) * (1 - share if certain else share)
