"""Held-out rows: measured on, never trained on; and their overlap with the training rows."""

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
    """Split rows into (train, heldout). Rows with one prompt stay together; the order of rows has no effect.

    Without `fraction`: 10 %, between 60 and 500 rows, and a third at most as far as prompts allow.

    Raises:
        DataError: all rows have the same prompt, so that nothing can be held out.
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
        most = max(1, len(rows) // 3)
        wanted = min(max(round(SHARE * len(rows)), FEWEST), MOST, most)
    else:
        most = len(rows) - 1
        wanted = min(max(round(fraction * len(rows)), 1), most)

    def rank(prompt: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{prompt}".encode(errors="surrogatepass")).digest()

    held: set[int] = set()
    for prompt in sorted(groups, key=rank):
        if len(held) >= wanted:
            break
        if len(held) + len(groups[prompt]) <= most:
            held.update(groups[prompt])
    if not held:  # every prompt has more rows than that
        held.update(groups[min(groups, key=lambda prompt: len(groups[prompt]))])
    train = tuple(row for index, row in enumerate(rows) if index not in held)
    return train, tuple(row for index, row in enumerate(rows) if index in held)


@dataclass(frozen=True)
class Overlap:
    """How many of the held-out prompts (`of`) training has seen; one prompt may count in all three.

    `exact`: equal up to case and spaces; `gram`: eight words in a row are shared; `near`: 80 % of the words
    are shared (Jaccard index of the word sets).
    """

    exact: int
    gram: int
    near: int
    of: int


def overlap(train: Sequence[Row], heldout: Sequence[Row]) -> Overlap:
    """Count the held-out prompts that training has seen, exactly or nearly. The counts are exact, not hashed."""
    held_texts = [normal(row.prompt_text) for row in heldout]
    train_texts = {normal(row.prompt_text) for row in train}
    grams = {gram for text in held_texts for gram in _grams(text)}
    shared = {gram for text in train_texts for gram in _grams(text) if gram in grams}
    return Overlap(
        exact=sum(text in train_texts for text in held_texts),
        gram=sum(any(gram in shared for gram in _grams(text)) for text in held_texts),
        near=len(_near(held_texts, train_texts)),
        of=len(held_texts),
    )


def _near(held_texts: Sequence[str], train_texts: set[str]) -> set[int]:
    """Find the held-out texts with a training text of Jaccard index NEAR or more.

    Two such sets share at least NEAR of either one's words, so at least one of any (1 - NEAR) of them plus
    one: it is enough to look up the rarest words.
    """
    sets = [frozenset(text.split()) for text in held_texts]
    frequency = Counter(word for text in train_texts for word in set(text.split()))
    index: dict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(sets):
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        for word in rarest[: len(words) - math.ceil(NEAR * len(words)) + 1]:
            index[word].append(number)
    near: set[int] = set()
    for text in train_texts:
        words = frozenset(text.split())
        for number in {n for word in words for n in index.get(word, ())} - near:
            other = sets[number]
            if len(words & other) >= NEAR * len(words | other):
                near.add(number)
    return near


def normal(text: str) -> str:
    """Normalise a prompt for comparison: case and spaces do not count."""
    return " ".join(text.casefold().split())


def _grams(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
