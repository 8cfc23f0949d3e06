"""The teacher's signals of rollouts that are trained on again: each is computed once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from potstill.data.batch import rows_of
from potstill.signals.signal import Signal
from potstill.signals.teacher import Teacher
from potstill.types import Batch, Example


class KeptSignals:
    """A teacher that is asked once about each row that may return, by the row's id; else the teacher itself.

    On a CPU such a row is given to the teacher alone, so that its signal does not depend on the rows beside it:
    a run that goes on from a checkpoint computes it again and gets the same bits. A GPU, which promises none,
    reads all rows of a batch together. Signals wait in the CPU's memory; a teacher that remembers has them on disk too,
    where a run that goes on finds them.

    A teacher in parts (`sharded`) is not for it: each of its passes needs all processes.

    Args:
        returning: the ids of rows that may return; what is kept of others is dropped.
    """

    def __init__(self, teacher: Teacher, returning: Callable[[], Collection[str]]) -> None:
        self.name, self.fingerprint = teacher.name, teacher.fingerprint
        self.provides, self.reads = teacher.provides, teacher.reads
        self._teacher = teacher
        self._ask: Callable[[Batch], Any] = getattr(teacher, "remember", teacher.signal)
        self._returning = returning
        self._kept: dict[str, Any] = {}

    def signal(self, batch: Batch) -> Signal:
        """The signal for the N scored positions."""
        returning = set(self._returning())
        self._kept = {name: signal for name, signal in self._kept.items() if name in returning}
        if not returning.intersection(batch.row_ids):
            return self._teacher.signal(batch)
        rows = rows_of(batch)
        if any(name not in self._kept for name in batch.row_ids):
            self._keep(batch, rows)
        return joined([self._kept[name] for name in batch.row_ids], batch.input_ids.device)

    def _keep(self, batch: Batch, rows: Sequence[Batch]) -> None:
        cpu = torch.device("cpu")
        if batch.input_ids.device.type == "cpu":
            missing = [row for row in rows if row.row_ids[0] not in self._kept]
            self._kept |= {row.row_ids[0]: joined([self._ask(row)], cpu) for row in missing}
            return
        signal = joined([self._ask(batch)], cpu)
        begin = 0
        for row in rows:
            part = signal.at(torch.arange(begin, begin := begin + row.count))
            self._kept[row.row_ids[0]] = part

    def expect(self, batches: Iterable[Sequence[Example]]) -> None:
        """Tell a teacher that reads ahead what comes next."""
        if hasattr(self._teacher, "expect"):
            self._teacher.expect(batches)

    def close(self) -> None:
        """Drop what is kept, and free the teacher's resources."""
        self._kept = {}
        self._teacher.close()


def joined(parts: Sequence[Any], device: torch.device) -> Any:
    """Signals of one kind, one after the other, on one device."""
    return _changed(parts, lambda tensors: torch.cat(tensors).to(device))


def _changed(parts: Sequence[Any], change: Callable[[list[Tensor]], Tensor]) -> Any:
    """The first signal with its tensors [N, …] made of those of all; a head stays as it is.

    Of several teachers' signals those without a position, which another kind stands for, are left out.
    """
    parts = [part for part in parts if part.rows] or parts
    first, values = parts[0], dict[str, Any]()
    for field in fields(first):
        value = getattr(first, field.name)
        if isinstance(value, Tensor):
            values[field.name] = change([getattr(part, field.name) for part in parts])
        elif isinstance(value, Mapping):  # a temperature's normalisers
            values[field.name] = {
                key: change([getattr(part, field.name)[key] for part in parts]) for key in value
            }
        elif field.name == "signals":  # of several teachers
            values[field.name] = tuple(
                _changed(one, change) for one in zip(*(part.signals for part in parts), strict=True)
            )
    return replace(first, **values)
