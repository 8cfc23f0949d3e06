"""A term against frozen weights: the distance to the student as it was before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from potstill.objectives.terms import StudentView, Term
from potstill.signals.signal import Signal
from potstill.signals.teacher import Teacher
from potstill.types import Loss


@dataclass(frozen=True)
class AgainstFrozen:
    """A term that reads another model's signal than the teacher's.

    Args:
        term: compares student and signal.
        frozen: the other model; it computes inside the term, on the batch that the term is given.
        autocast: dtype of its forward pass: the student's, so that equal weights give equal numbers.
        together: each of its passes needs all processes.
    """

    term: Term
    frozen: Teacher
    autocast: torch.dtype | None = None
    together: bool = False

    @property
    def name(self) -> str:
        return self.term.name

    @property
    def needs(self) -> frozenset[str]:
        return self.term.needs

    @property
    def totals(self) -> tuple[str, ...]:
        return self.term.totals

    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """The term on a batch; the teacher's signal is not read."""
        batch = student.batch
        # A step on dataset rows needs no pass of it; one in parts is passed by all processes or by none.
        if not batch.count and not self.together:
            return Loss(0.0 * student.hidden.sum(), torch.tensor(0, device=student.hidden.device))
        device = batch.input_ids.device
        with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
            signal = self.frozen.signal(batch)
        return self.term(student, signal)

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """Refuse what the term refuses."""
        self.term.check(sums, tokens)
