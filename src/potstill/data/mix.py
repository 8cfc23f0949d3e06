"""Sources of training examples in stated shares: exact to one row, the same draw on every process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

from potstill.errors import DataError
from potstill.types import Example

GENERATED = "teacher_generated"  # the source that is the teacher's answers to the recipe's training rows
By = Literal["rows", "tokens"]


@dataclass(frozen=True)
class Plan:
    """The shares of a recipe's sources in all that is trained on.

    Args:
        shares: source -> share; they add up to 1.
        by: what is counted: rows, or scored tokens.
        total: rows or tokens in all; None is as many as the shares allow.
        seed: decides which rows of a source are taken.
    """

    shares: tuple[tuple[str, float], ...]
    by: By = "rows"
    total: int | None = None
    seed: int = 0

    @property
    def generated(self) -> bool:
        """Whether the teacher's answers are among them."""
        return GENERATED in dict(self.shares)


@dataclass(frozen=True)
class Taken:
    """What was taken of a source, and what there was. `rows` of several turns are several examples."""

    source: str
    share: float
    rows: int
    tokens: int
    of_rows: int
    of_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mixed(plan: Plan, sources: dict[str, Sequence[Example]]) -> tuple[list[Example], list[Taken]]:
    """Take of every source so many rows that the shares hold, in the order of the sources.

    By rows, the counts are those of the largest remainder; by tokens, each source has the number of rows, in drawn
    order, whose tokens are nearest to its share.

    Raises:
        DataError: a source has no row, too few for the total, or its share is less than a row.
    """
    rows = {
        source: _in_drawn_order(_rows(examples), plan.seed, source) for source, examples in sources.items()
    }
    counts = {source: _counts(rows[source], plan.by) for source, _ in plan.shares}
    _require_rows(plan, counts)
    total = _total(plan, {source: sum(of) for source, of in counts.items()})
    if plan.by == "rows":
        taken = _largest_remainders(plan, int(total))
    else:
        taken = {source: _nearest(counts[source], total * _exact(share)) for source, share in plan.shares}
    examples: list[Example] = []
    report = []
    for source, share in plan.shares:
        if not taken[source]:
            raise DataError(
                f"{share:g} of {float(total):g} {plan.by} is less than one row of {source}.",
                path="data.mix",
                fix="Raise the share, or give the other sources more rows.",
            )
        chosen = rows[source][: taken[source]]
        kept = {id(example) for row in chosen for example in row}
        examples += [example for example in sources[source] if id(example) in kept]
        of_tokens = sum(_counts(rows[source], "tokens"))
        tokens = sum(_counts(chosen, "tokens"))
        report.append(Taken(source, share, len(chosen), tokens, len(rows[source]), of_tokens))
    return examples, report


def _exact(share: float) -> Fraction:
    """0.1 as a tenth, not as the nearest binary number."""
    return Fraction(repr(share))


def _rows(examples: Sequence[Example]) -> list[list[Example]]:
    """Examples that are taken together: turns of one conversation. Several answers to a prompt are rows of their own."""
    groups: dict[tuple[str, bool | str], list[Example]] = {}
    for example in examples:
        turns = example.share < 1  # a part of a conversation, of which all parts or none are taken
        groups.setdefault((example.row_id, turns or example.id), []).append(example)
    return list(groups.values())


def _in_drawn_order(rows: list[list[Example]], seed: int, source: str) -> list[list[Example]]:
    """In an order that depends on seed and ids, never on the order of the rows."""

    def rank(row: list[Example]) -> bytes:
        return hashlib.sha256(f"{seed}\0{source}\0{row[0].id}".encode(errors="surrogatepass")).digest()

    return sorted(rows, key=rank)


def _counts(rows: Sequence[Sequence[Example]], by: By) -> list[int]:
    return [1 if by == "rows" else sum(example.planned[1] for example in row) for row in rows]


def _require_rows(plan: Plan, counts: dict[str, list[int]]) -> None:
    for source, share in plan.shares:
        if not sum(counts[source]):
            raise DataError(
                f"{source} is to be {share:g} of what is trained on, and none of its rows can be used.",
                path="data.mix",
                fix="Leave the source out, or look at its rows.",
            )


def _total(plan: Plan, there: dict[str, int]) -> Fraction:
    """How much is trained on: the stated total, else as much as the scarcest source allows."""
    most = min(Fraction(there[source]) / _exact(share) for source, share in plan.shares)
    if plan.by == "rows":
        most = Fraction(math.floor(most))
    if plan.total is None:
        return most
    for source, share in plan.shares:
        wanted = plan.total * _exact(share)
        if wanted > there[source]:
            raise DataError(
                f"{share:g} of {plan.total} {plan.by} are {float(wanted):g}, and {source} has {there[source]}.",
                path="data.mix_total",
                fix=f"These shares allow {math.floor(most)} {plan.by}: lower mix_total, or leave it out.",
            )
    return Fraction(plan.total)


def _largest_remainders(plan: Plan, total: int) -> dict[str, int]:
    """Whole numbers that add up to `total` (Hare's quota); of equal remainders the earlier source has the row."""
    quotas = {source: total * _exact(share) for source, share in plan.shares}
    counts = {source: math.floor(quota) for source, quota in quotas.items()}
    left = total - sum(counts.values())
    for source in sorted(quotas, key=lambda source: counts[source] - quotas[source])[:left]:
        counts[source] += 1
    return counts


def _nearest(tokens: Sequence[int], target: Fraction) -> int:
    """How many of the first rows have the sum that is nearest to the target; of two equally near the smaller."""
    best, sums = 0, 0
    nearest = abs(target)
    for number, count in enumerate(tokens, 1):
        sums += count
        if abs(sums - target) < nearest:
            best, nearest = number, abs(sums - target)
    return best
