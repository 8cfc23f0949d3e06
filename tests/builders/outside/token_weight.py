"""A token weight from outside the package."""

from __future__ import annotations

from torch import Tensor


def first_tokens(student_lp: Tensor, teacher_lp: Tensor, place: Tensor, *, count: int = 1) -> Tensor:
    """1 for the first `count` tokens of an answer, else 0."""
    return (place < count).to(student_lp.dtype)
