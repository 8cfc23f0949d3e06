"""Rows of token ids as a padded batch beside their cached signal, for anyone's own training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.cache.keys import all_but_first, key_of
from potstill.cache.reader import Cache
from potstill.data.batch import collate
from potstill.signals.signal import Signal
from potstill.types import Batch, Example


@dataclass(frozen=True)
class Collator:
    """`collate_fn` of a DataLoader: rows {"input_ids", "scored"} become their batch and its signal.

    `scored[i]` says that token i is a target; the first token never is, and all others are in a row without it. The
    signal's rows are in the order of
    `batch.predicts`. Needs no transformers.
    """

    cache: Cache
    pad_id: int = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Batch, Signal]:
        """The batch and the signal of its scored positions.

        Raises:
            CacheMiss: the cache does not hold a row.
        """
        examples = [
            Example(str(number), ids := tuple(map(int, row["input_ids"])), _marks(row, ids))
            for number, row in enumerate(rows)
        ]
        keys = [key_of(example.input_ids, example.scored) for example in examples]
        return collate(examples, pad_id=self.pad_id), self.cache.batch(keys)


def _marks(row: Mapping[str, Any], ids: Sequence[int]) -> tuple[bool, ...]:
    scored = row.get("scored")
    return all_but_first(ids) if scored is None else tuple(map(bool, scored))
