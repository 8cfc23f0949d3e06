"""A reward from outside the package."""

from __future__ import annotations


def brevity(prompt: str, answer: str) -> float:
    """Minus the number of words in the answer."""
    return -float(len(answer.split()))
