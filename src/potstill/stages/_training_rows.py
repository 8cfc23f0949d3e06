"""The examples that a stage learns from, and those that choose its best weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.store.artifacts import key_of
from potstill.types import Example


@dataclass(frozen=True)
class Examples:
    """Examples of one split, and how many rows or answers were left out, by reason."""

    examples: tuple[Example, ...] = ()
    funnel: Mapping[str, int] = field(default_factory=dict)


def sizes(train: Sequence[Example], validation: Sequence[Example]) -> dict[str, int]:
    """The sizes of an epoch and of the rows that validate, as `Facts` names them."""
    return {
        "train_tokens": sum(example.planned[1] for example in train),
        "row_tokens": sum(example.planned[0] for example in train),
        "validation_rows": len(validation),
        "validation_tokens": sum(len(example.input_ids) for example in validation),
    }


@dataclass(frozen=True)
class TrainingRows:
    """What a training stage learns from, and the rows that choose its best weights."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """What `auto` may depend on: see `Facts`."""
        return sizes(self.train, self.validation)

    def validated_on(self, most: int) -> TrainingRows:
        """With so many validation rows at most, short and long ones as they come."""
        return replace(self, validation=short_and_long(self.validation, most))

    @property
    def key(self) -> str:
        """What identifies the rows that are trained on."""
        rows = [
            [e.id, e.input_ids, e.scored, e.weight, e.share, *filter(None, [e.room, _read(e)])]
            for e in self.train
        ]
        return key_of("examples", {"rows": rows})


def short_and_long(examples: Sequence[Example], most: int) -> tuple[Example, ...]:
    """So many of them at most, short and long ones as they come, by length."""
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    count = min(most, len(ordered))
    return tuple(ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count))


def _read(example: Example) -> tuple[int, ...]:
    """The ids that the teacher reads in place of the student's, () where it reads these."""
    return () if example.reading is None else example.reading.input_ids


def scored_rows(examples: Sequence[Example]) -> list[list[Any]]:
    """What identifies rows that are scored token by token."""
    return [[e.row_id, e.input_ids, e.scored, *filter(None, [_read(e)])] for e in examples]
