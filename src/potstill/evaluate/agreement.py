"""How often teacher and student rank the same token first."""

from __future__ import annotations

from potstill.evaluate.subject import Subject
from potstill.types import Figure

FIGURES = (
    Figure(
        "agreement", label="Top-1 agreement", unit="share", better="up", place="headline",
        meaning="How often both models rank the same token first.",
    ),
    Figure(
        "agreement_top5", label="Top-5 agreement", unit="share", better="up",
        meaning="How often the teacher's first token is among the student's first five.",
    ),
)  # fmt: skip
NEEDS = frozenset({"scores"})


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Top-1 and top-5 agreement over scored tokens."""
    return tuple(subject.token_mean(figure, teacher=1.0) for figure in FIGURES)
