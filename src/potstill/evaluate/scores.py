"""Both models on the same held-out answers, position by position: what likelihood and agreement share.

KL both ways at T = 1, cross-entropy on the answer's tokens, top-1 agreement, and how often the
teacher's first choice is among the student's five. One pass; logits live a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.data.batch import collate
from potstill.data.plan import by_length
from potstill.models import anatomy
from potstill.models.projection import plain_logits, wide
from potstill.objectives.fused import DEFAULT_CHUNK_BYTES, chunk_rows
from potstill.objectives.plugins import Divergence
from potstill.signals.signal import Signal
from potstill.signals.support import tempered
from potstill.signals.teacher import Teacher
from potstill.types import Example, Head

NAMES = ("forward_kl", "reverse_kl", "cross_entropy", "teacher_cross_entropy", "agreement", "agreement_top5")


@dataclass(frozen=True)
class Scores:
    """Sums over each row's scored tokens (nats, or counts of agreements), in the examples' order of rows.

    A conversation whose turns are examples of their own is one row: its turns are not independent, and an
    interval that drew them one by one would be too narrow.
    """

    row_ids: tuple[str, ...]
    tokens: tuple[float, ...]
    sums: dict[str, tuple[float, ...]]

    def of_teacher(self) -> Scores:
        """The teacher's own cross-entropy on the same tokens."""
        return replace(self, sums={"cross_entropy": self.sums["teacher_cross_entropy"]})


@torch.no_grad()
def score(
    student: torch.nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    *,
    vocabulary: int,
    pad_id: int,
    forward_kl: Divergence,
    reverse_kl: Divergence,
    batch_tokens: int = 2048,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score `examples` (their answers' tokens) under the student and against the teacher.

    Args:
        teacher: gives dense signals; None where its distribution cannot be compared, and then only the
            student's cross-entropy is measured.
        vocabulary: ids that both models share; padded rows of either head are cut before the softmax.
        batch_tokens: padded tokens of one forward pass.
    """
    was_training = student.training
    student.eval()
    form = anatomy.head_form(student)
    device = next(student.parameters()).device
    names = NAMES if teacher is not None else ("cross_entropy",)
    per_row = {e.row_id: torch.zeros(len(names) + 1, dtype=torch.float64) for e in examples}
    done = 0
    for rows in by_length([len(example.input_ids) for example in examples], batch_tokens):
        batch = collate([examples[row] for row in rows], pad_id=pad_id).to(device)
        hidden = anatomy.states_of(student, batch)[batch.predicts]
        view = _View(hidden, anatomy.head_of(student, vocabulary, form), batch.targets, chunk_bytes)
        signal = None if teacher is None else teacher.signal(batch.for_teacher)
        values = _tokens(view, signal, forward_kl, reverse_kl)
        owner = batch.predicts.nonzero()[:, 0]
        summed = torch.zeros(len(rows), len(names) + 1, dtype=torch.float64)
        summed.index_add_(0, owner.cpu(), values.cpu())
        for row, line in zip(rows, summed, strict=True):
            per_row[examples[row].row_id] += line
        done += len(rows)
        on_progress(done, len(examples))
    student.train(was_training)
    table = [line.tolist() for line in per_row.values()]
    sums = {name: tuple(line[index] for line in table) for index, name in enumerate(names)}
    return Scores(tuple(per_row), tuple(line[-1] for line in table), sums)


@dataclass(frozen=True)
class _View:
    """The student's side of a batch: hidden states [N, H] at the scored positions, their head and targets [N]."""

    hidden: Tensor
    head: Head
    targets: Tensor
    chunk_bytes: int


def _tokens(view: _View, signal: Signal | None, forward_kl: Divergence, reverse_kl: Divergence) -> Tensor:
    """[N, names + 1] in float64, the last column all ones."""
    n, width = view.hidden.shape[0], 1 if signal is None else len(NAMES)
    out = torch.ones(n, width + 1, dtype=torch.float64, device=view.hidden.device)
    step = chunk_rows(view.head.vocabulary, wide(view.hidden.dtype), view.chunk_bytes) // 2
    prepared = None if signal is None else signal.prepared(forward_kl, "bucket")
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        logits = plain_logits(view.head, view.hidden[rows])
        target = view.targets[rows].unsqueeze(-1)
        if prepared is None:
            out[rows, :1] = -tempered(logits, 1.0).gather(1, target).double()
            continue
        sides = prepared.chunk(rows, logits).beside(logits, slice(0, logits.shape[0]), 1.0)
        favourite = sides.teacher_lp.argmax(-1, keepdim=True)
        columns = (
            forward_kl.value(sides.student_lp, sides.teacher_lp),
            reverse_kl.value(sides.student_lp, sides.teacher_lp),
            -sides.student_lp.gather(1, target).squeeze(-1),
            -sides.teacher_lp.gather(1, target).squeeze(-1),
            (sides.student_lp.argmax(-1, keepdim=True) == favourite).squeeze(-1),
            (sides.student_lp.topk(min(5, logits.shape[1])).indices == favourite).any(-1),
        )
        out[rows, :-1] = torch.stack([column.double() for column in columns], -1)
    return out
