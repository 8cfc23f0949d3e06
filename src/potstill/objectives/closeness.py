"""How close a student is to its teacher on its own tokens: entropies, shared likely ids, early and late divergence.

A term of value 0. Every fourth token of an answer that the student wrote is measured: what is read depends on
the row alone, never on how a step is cut into micro-batches or among processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from potstill.devices import exact
from potstill.divergences._divergence import Divergence
from potstill.objectives.diagnostics import add_sum
from potstill.objectives.fused import linear_loss
from potstill.objectives.terms import HIDDEN, StudentView
from potstill.signals.signal import Chunks, Signal
from potstill.signals.support import Support
from potstill.signals.text import Text
from potstill.types import Batch, Loss, places_in_answers

EVERY = 4  # tokens of an answer from one that is measured to the next
LIKELY = 16  # ids of either side that are compared
MOST_NATS = 100.0  # of one id's log-ratio, where the teacher forbids what the student writes
OWN = "own_"  # the names of its sums, which other terms do not have
POSITIONS, EARLY, LATE = "own_positions", "own_early", "own_late"
MEANS = {
    "student_entropy": POSITIONS,
    "teacher_entropy": POSITIONS,
    "overlap": POSITIONS,
    "early_kl": EARLY,
    "late_kl": LATE,
}
SUMS = (POSITIONS, EARLY, LATE, *(OWN + name for name in MEANS))


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """What the sums of a step say; nothing where no token of the student was measured.

    Returns:
        `student_entropy`, `teacher_entropy` (nats) and `entropy_ratio`, the first over the second; `overlap`, the
        share of the teacher's 16 most likely ids that are among the student's 16; `early_kl` and `late_kl`,
        KL(student ‖ teacher) in nats on the first and the second half of the answers.
    """
    result = {name: sums[OWN + name] / sums[count] for name, count in MEANS.items() if sums.get(count)}
    if result:
        teacher = result["teacher_entropy"]
        result["entropy_ratio"] = result["student_entropy"] / teacher if teacher > 1e-6 else 1.0
    return result


@dataclass(frozen=True)
class Closeness:
    """Sums over measured tokens, under the names of `SUMS`; zeros where a step or signal has nothing to measure.

    Args:
        divergence: any that the teacher's signals support: it only opens them.
    """

    divergence: Divergence

    name: ClassVar[str] = "closeness"
    needs: ClassVar[frozenset[str]] = frozenset({HIDDEN})
    totals: ClassVar[tuple[str, ...]] = SUMS

    @torch.no_grad()
    def __call__(self, student: StudentView, signal: Signal) -> Loss:
        """A loss of 0 with the sums as metrics."""
        nothing = student.hidden.new_zeros(())
        rows, late = measured(student.batch)
        if not len(rows) or signal.estimated or signal.kind == Text.kind:
            zeros = {name: exact.zero(nothing.device) for name in SUMS}
            return Loss(nothing, torch.zeros((), dtype=torch.int64, device=nothing.device), zeros)
        compared = _Compared(signal.at(rows).chunks(self.divergence, "bucket"), late)
        loss = linear_loss(
            student.hidden[rows],
            student.head,
            compared,
            chunk_bytes=student.chunk_bytes,
            rounded=student.rounded,
        )
        return Loss(nothing, loss.count, loss.metrics)

    def check(self, sums: Mapping[str, float], tokens: int) -> None:
        """There is nothing that cannot be."""


def measured(batch: Batch) -> tuple[Tensor, Tensor]:
    """The scored tokens that are measured [M], as indices, and which of them stand in the second half [M]."""
    place = places_in_answers(batch.predicts)
    answer = (place == 0).cumsum(0) - 1
    length = torch.bincount(answer)[answer] if len(answer) else answer
    rows = ((place % EVERY == 0) & ~batch.hard).nonzero().squeeze(-1)
    return rows, (2 * place >= length)[rows]


@dataclass(frozen=True)
class _Compared:
    """Both sides of the measured tokens, chunk by chunk."""

    chunks: Chunks
    late: Tensor  # [M] bool

    def require_rows(self, n: int) -> None:
        assert n == self.late.shape[0]

    def __call__(self, logits: Tensor, rows: slice, gradient: bool) -> tuple[Tensor, dict[str, Tensor]]:
        support = self.chunks(rows, logits).beside(logits, slice(0, logits.shape[0]), 1.0)
        student, teacher, late = support.student_lp, support.teacher_lp, self.late[rows]
        q, p = student.exp(), teacher.exp()
        apart = torch.where(q > 0, q * (student - teacher).clamp(max=MOST_NATS), 0.0).sum(-1)
        sums: dict[str, Tensor] = {}
        add_sum(sums, POSITIONS, torch.ones_like(apart))
        add_sum(sums, OWN + "student_entropy", -torch.where(q > 0, q * student, 0.0).sum(-1))
        add_sum(sums, OWN + "teacher_entropy", -torch.where(p > 0, p * teacher, 0.0).sum(-1))
        add_sum(sums, OWN + "overlap", overlap(support))
        for count, name, half in ((EARLY, "early_kl", ~late), (LATE, "late_kl", late)):
            add_sum(sums, count, half.to(apart.dtype))
            add_sum(sums, OWN + name, torch.where(half, apart, 0.0))
        return logits.new_zeros(logits.shape[0]), sums


def overlap(support: Support) -> Tensor:
    """The share of the teacher's most likely ids that are among as many of the student's, [N]."""
    likely = support.teacher_lp if support.ids is None else support.teacher_lp[:, : support.ids.shape[1]]
    k = min(LIKELY, likely.shape[1])
    teacher = likely.topk(k, -1).indices
    if support.ids is not None:
        teacher = support.ids.gather(1, teacher)
    student = support.full_lp.topk(k, -1).indices
    return (teacher.unsqueeze(2) == student.unsqueeze(1)).any(2).double().mean(-1)
