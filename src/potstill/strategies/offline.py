"""Train on the rows as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from potstill.data.batch import collate
from potstill.types import Batch, Example, Sampler, Strategy


class Offline(Strategy):
    """No replacement, no state."""

    def batches(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> Iterator[Batch]:
        for rows in examples:
            yield collate(rows, pad_id=sampler.pad_id, packed=sampler.packed)


def build() -> Offline:
    """Rows are trained on as they are; there is nothing to choose."""
    return Offline()
