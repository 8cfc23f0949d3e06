"""A metric from outside the package."""

from __future__ import annotations

from typing import Any

from potstill.types import Figure

NEEDS = {"answers"}
WORDS = Figure("words", label="Words an answer", unit="words", better="up", meaning="How much is said.")


def words(subject: Any, *, least: int = 0) -> list[Figure]:
    """Mean number of words in an answer."""
    return [subject.ratio(WORDS, [max(least, len(answer.text.split())) for answer in subject.answers])]
