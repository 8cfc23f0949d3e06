"""Rows that are measured on and never trained on, and how much of them training has seen anyway."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from potstill.data.rows import Row
from potstill.errors import DataError

SHARE = 0.1
FEWEST, MOST = 60, 500
GRAM = 8
NEAR = 0.8


def split_heldout(
    rows: Sequence[Row], *, fraction: float | None = None, seed: int = 0
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """(train, heldout). Rows that share a prompt stay together; the order of rows does not matter.

    Without `fraction`: 10 %, between 60 and 500 rows, never more than half.

    Raises:
        DataError: all rows share one prompt, so that nothing can be held out.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        groups[normal(row.prompt_text)].append(index)
    if len(groups) < 2:
        raise DataError(
            f"{len(rows)} rows with {len(groups)} prompt cannot be split into training and held-out rows.",
            path="data.train",
            fix="Name a file with other prompts in data.heldout.",
        )
    if fraction is None:
        most = len(rows) // 2
        wanted = min(max(round(SHARE * len(rows)), FEWEST), MOST, most)
    else:
        most = len(rows) - 1
        wanted = min(max(round(fraction * len(rows)), 1), most)

    def place(prompt: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{prompt}".encode(errors="surrogatepass")).digest()

    held: set[int] = set()
    for prompt in sorted(groups, key=place):
        if len(held) >= wanted:
            break
        if len(held) + len(groups[prompt]) <= most:
            held.update(groups[prompt])
    train = tuple(row for index, row in enumerate(rows) if index not in held)
    return train, tuple(row for index, row in enumerate(rows) if index in held)


@dataclass(frozen=True)
class Overlap:
    """How many held-out prompts stand in the training rows; one prompt may count in all three.

    `exact` up to case and spaces; `gram` shares eight words in a row; `near` shares 80 % of its words
    (Jaccard index of the word sets).
    """

    exact: int
    gram: int
    near: int
    of: int


def overlap(train: Sequence[Row], heldout: Sequence[Row]) -> Overlap:
    """Count the held-out prompts that training has seen, exactly or nearly. Exact, no hashing."""
    held = [normal(row.prompt_text) for row in heldout]
    seen = [normal(row.prompt_text) for row in train]
    known = set(seen)
    grams = {gram for text in held for gram in _grams(text)}
    shared = {gram for text in known for gram in _grams(text) if gram in grams}
    return Overlap(
        exact=sum(text in known for text in held),
        gram=sum(any(gram in shared for gram in _grams(text)) for text in held),
        near=len(_near(held, known)),
        of=len(held),
    )


def _near(held: Sequence[str], known: set[str]) -> set[int]:
    """Held-out texts with a training text of Jaccard index NEAR or more.

    Two sets that similar share at least NEAR of either one's words, so one word at least out of any
    (1 - NEAR) of them and one more: it is enough to look up the rarest.
    """
    sets = [frozenset(text.split()) for text in held]
    frequency = Counter(word for text in known for word in set(text.split()))
    index: dict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(sets):
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        for word in rarest[: len(words) - math.ceil(NEAR * len(words)) + 1]:
            index[word].append(number)
    found: set[int] = set()
    for text in known:
        words = frozenset(text.split())
        for number in {n for word in words for n in index.get(word, ())} - found:
            other = sets[number]
            if len(words & other) >= NEAR * len(words | other):
                found.add(number)
    return found


def normal(text: str) -> str:
    """What makes two prompts one: case and spaces apart, the same words."""
    return " ".join(text.casefold().split())


def _grams(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
