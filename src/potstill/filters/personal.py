"""Answers that hold an e-mail address, a phone number or the number of a credit card that their prompts do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from potstill.errors import RecipeError
from potstill.filters import _patterns
from potstill.filters._candidate import Candidate, FilterContext

LABEL = "personal data"
BY_DEFAULT = True
ORDER = 70
ALONE = True


def problems(
    answers: Sequence[Candidate],
    context: FilterContext,
    *,
    action: Literal["reject", "count", "ignore"] = "count",
    kinds: list | None = None,
) -> Iterator[str]:
    """Judge by form and, of cards, by their check digit. What the prompt itself holds is not the teacher's doing.

    Args:
        kinds: which are looked for: e-mail, phone, credit card; null is all.

    Raises:
        RecipeError: there is no such kind.
    """
    wanted = set(_patterns.PERSONAL if kinds is None else kinds)
    if unknown := sorted(map(str, wanted - set(_patterns.PERSONAL))):
        raise RecipeError(
            f"holds {unknown[0]!r}.",
            path="generate.filters.personal.kinds",
            fix=f"It may hold {', '.join(_patterns.PERSONAL)}.",
        )
    for answer in answers:
        found = _patterns.personal(answer.text)
        kind = next((kind for kind, words in found if kind in wanted and words not in answer.prompt), "")
        yield f"{LABEL} ({kind})" if kind else ""
