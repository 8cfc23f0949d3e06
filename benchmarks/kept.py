"""A teacher that is read from a cache of the rows that a benchmark trains on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ROWS = 8  # asked about in one pass, and written in one block


class Kept:
    """Says what an open cache holds of a batch's rows."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def signal(self, batch: Any) -> Any:
        """The signal for the N scored positions."""
        from potstill.data.batch import readings
        from potstill.teachers.cached import keys_of

        return self.cache.batch(keys_of(readings(batch)))


def keep(
    teacher: Any,
    examples: Sequence[Any],
    folder: Path,
    kind: str,
    setting: Mapping[str, Any],
    *,
    vocabulary: int,
    pad_id: int,
) -> Kept:
    """Ask a teacher about these rows and write what it says."""
    from potstill.cache.header import Header
    from potstill.cache.reader import Cache
    from potstill.cache.writer import Writer

    rows = sorted(examples, key=lambda row: -len(row.input_ids))
    with Writer(folder, Header(kind, setting, "benchmark", vocabulary)) as writer:
        for start in range(0, len(rows), ROWS):
            writer.add_block(list(asked(teacher, rows[start : start + ROWS], pad_id)))
        writer.finish()
    return Kept(Cache.open(folder))


def asked(teacher: Any, batch: Sequence[Any], pad_id: int) -> Iterator[tuple[bytes, Any]]:
    """The key of each row and the teacher's signal, from one pass over all of them."""
    from potstill.cache.keys import key_of
    from potstill.data.batch import collate

    signal, begin = teacher.signal(collate(batch, pad_id=pad_id)), 0
    for row in batch:
        yield key_of(row.input_ids, row.scored), signal.at(torch.arange(begin, begin := begin + row.count))
