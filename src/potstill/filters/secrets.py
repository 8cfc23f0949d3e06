"""Answers that hold an API key, a private key or a password."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.filters import _patterns
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "secret"
BY_DEFAULT = True
ORDER = 60
ALONE = True


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "reject",
) -> Iterator[str]:
    """Judge by the form that services give their keys; the reason names the kind and never repeats the key."""
    for answer in answers:
        kind = next((kind for kind, _ in _patterns.secrets(answer.text)), "")
        yield f"{LABEL} ({kind})" if kind else ""
