"""A strategy from outside the package: every row once more as if the student had written it, scored by a script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from potstill.data.batch import collate
from potstill.types import Batch, Example, Sampler, Strategy

STUDENT_WRITES = "share"
KEEPS_ROWS = "rows"


class Written(Strategy):
    def batches(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> Iterator[Batch]:
        for rows in examples:
            read = [_scored(row, -0.5, -0.25) for row in rows]
            own = [
                _scored(replace(row, id=f"{row.id}@0", answers=row.id, origin="student"), -1.0, -0.5)
                for row in rows
            ]
            yield collate([*read, *own], pad_id=sampler.pad_id, packed=sampler.packed)

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return None

    def observe(self, metrics: Mapping[str, float]) -> None:
        return None


def _scored(row: Example, student: float, teacher: float) -> Example:
    return replace(row, student_lp=(student,) * row.count, teacher_lp=(teacher,) * row.count)


def twice(
    *, share: float = 1.0, teacher_share: float = 0.0, proposals: int = 0, rows: bool = True
) -> Written:
    """Every row of the data, and a copy that counts as the student's."""
    return Written()
