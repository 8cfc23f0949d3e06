"""How fast a model writes its greedy answers, prompts side by side."""

from __future__ import annotations

from dataclasses import replace

from potstill.evaluate.subject import Subject
from potstill.types import Figure

SPEED = Figure(
    "generation_tokens_per_second", label="Writing speed", unit="tokens per second", better="up", place="cost",
    meaning="Tokens of all greedy answers over the time that writing them took, prompts side by side.",
)  # fmt: skip
FIGURES = (SPEED,)
NEEDS = frozenset({"answers"})


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Tokens per second, timed once and therefore without an interval."""
    if not subject.answers:
        return (replace(SPEED, reason="no prompt was answered in text"),)
    tokens = sum(answer.tokens for answer in subject.answers)
    return (replace(SPEED, value=tokens / max(subject.seconds, 1e-9), reason="timed once"),)
