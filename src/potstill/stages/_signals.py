"""Which rows a capture need not ask about, because decoding left what it stores beside their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.stages._entries import serving
from potstill.types import Example

if TYPE_CHECKING:
    from potstill.stages._capture import Job


def measurable(kept: Cache | None) -> bool:
    """Whether settings can be measured: of kept ids alone nobody knows the rest."""
    return kept is None or kept.header.kind == "hidden"


def sample_of(job: Job, tokens: int) -> list[Example]:
    """The first rows with so many scored tokens, on which settings are measured; where the setting stands, one that is
    to be measured on, which tells the width of a state."""
    if not measurable(job.kept_states):
        return [*job.heldout[:1]]
    few, count = list[Example](), 0
    for row in job.rows or job.heldout:
        if count >= tokens:
            break
        few.append(row)
        count += row.count
    return few


def words_of(job: Job, kind: str) -> str:
    """Of how many rows the signal is at hand, and why the teacher is asked about the others."""
    rows = [(row, kind) for row in job.rows] + [(row, "hidden") for row in job.heldout]
    at_hand = 0
    for row, wanted in rows:
        kept = serving(job.kept_states, wanted)
        at_hand += kept is not None and _key(row) in kept
    text = f"what {at_hand} of {len(rows)} rows were drawn from was kept as they were written"
    if at_hand == len(rows):
        return text
    others = (
        "held-out rows, or rows whose prompt or answer has other ids now"
        if kind == "topk"
        else ("their prompt or answer has other ids now, or an earlier run wrote it")
    )
    return f"{text}; the teacher is asked about the others ({others})"


def _key(row: Example) -> bytes:
    return key_of(row.input_ids, row.scored)
