"""A run's rows by what they are for: to train on, to choose the best weights by, to measure on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from potstill.data import split
from potstill.data.rows import Row
from potstill.errors import DataError

VALIDATION_SHARE, VALIDATION_LEAST, VALIDATION_MOST = 0.05, 16, 200


@dataclass(frozen=True)
class Parts:
    """Rows to train on, and a few others that choose the best weights."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    unread: Mapping[str, int] = field(default_factory=dict)  # columns that nobody reads, with their rows


@dataclass(frozen=True)
class Dataset:
    """The rows of a run. Held-out rows are only ever measured on."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    heldout: tuple[Row, ...]
    shape: str
    funnel: Mapping[str, int]
    source: str  # where the held-out rows come from, in words
    of_stages: Mapping[str, Parts] = field(default_factory=dict)
    """Rows that a stage brings along, by the stage's name."""
    unread: Mapping[str, int] = field(default_factory=dict)  # columns that nobody reads, with their rows
    mixed: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    """Rows that are mixed with those of `train`, by their source."""
    columns: Mapping[str, str] = field(default_factory=dict)  # of a file, and what the recipe calls them

    @property
    def trained_on(self) -> tuple[Row, ...]:
        """Every row that any stage trains on or chooses by."""
        own = self.train + self.validation + sum(self.mixed.values(), ())
        return sum((p.train + p.validation for p in self.of_stages.values()), own)

    @property
    def not_read(self) -> Mapping[str, int]:
        """The columns of all rows that nobody reads, with the number of rows that fill them."""
        return sum((Counter(parts.unread) for parts in self.of_stages.values()), Counter(self.unread))

    @property
    def counts(self) -> str:
        """How many rows there are for what, in words."""
        parts = f"{len(self.train)} train, {len(self.validation)} validation, {len(self.heldout)} held out"
        return f"{parts} ({self.source})"

    @property
    def everything(self) -> tuple[Row, ...]:
        return self.train + self.validation + self.heldout


def with_validation(rows: Sequence[Row], seed: int) -> Parts:
    """Set a twentieth of the rows aside for validation, between 16 and 200, at most a quarter."""
    wanted = max(VALIDATION_LEAST, round(VALIDATION_SHARE * len(rows)))
    wanted = min(wanted, VALIDATION_MOST, len(rows) // 4)
    if not wanted or len({row.prompt_text for row in rows}) < 2:
        return Parts(tuple(rows), ())
    return Parts(*split.split_heldout(rows, fraction=wanted / len(rows), seed=seed + 1))


def drop_heldout(rows: Sequence[Row], heldout: Sequence[Row], path: str = "finetune.data") -> Sequence[Row]:
    """Drop the rows whose prompts are held out.

    Raises:
        DataError: none is left.
    """
    held = {split.normal(row.prompt_text) for row in heldout if row.text is None}
    kept = [row for row in rows if row.text is not None or split.normal(row.prompt_text) not in held]
    if rows and not kept:
        raise DataError(
            f"all {len(rows)} rows have held-out prompts.",
            path=path,
            fix="Give rows that are not measured on.",
        )
    return kept
