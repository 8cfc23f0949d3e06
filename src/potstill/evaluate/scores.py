"""Both models on the same held-out answers, position by position: what likelihood and agreement share.

KL both ways at T = 1, cross-entropy on the answer's tokens, top-1 agreement, and how often the
teacher's first choice is among the student's five. One pass; logits live a chunk at a time.
Where one model has ids that the other lacks, all of it is on the shared ids, and the mass that each
model gives to the rest is measured beside it. Of a teacher that states its likeliest ids alone, both KLs are
those of coarser distributions: these ids, and one bucket for all others. Where the student lacks all of a position's
ids the bucket is everything: both bounds and the stated mass are 0 there, and such positions are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from potstill.data.batch import collate
from potstill.data.plan import by_length
from potstill.devices import exact, ranks
from potstill.evaluate.teacher import left_out
from potstill.models import anatomy
from potstill.models.beside import evaluating
from potstill.models.projection import mass_beyond, plain_logits, wide
from potstill.objectives.fused import chunk_rows
from potstill.objectives.token import Divergence
from potstill.signals.support import Support, tempered
from potstill.signals.teacher import Teacher
from potstill.types import Example

NAMES = ("forward_kl", "reverse_kl", "cross_entropy", "teacher_cross_entropy", "agreement", "agreement_top5")
LEFT_OUT = ("left_out", "teacher_left_out")  # each model's mass on ids that the other lacks
COARSE = ("cross_entropy", "forward_kl_bucket", "reverse_kl_bucket", "stated_mass")
UNSTATED = "unstated"  # positions of which a teacher states no id that the student has


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
        """The teacher's own cross-entropy on the same tokens, and its mass on ids that the student lacks."""
        sums = {"cross_entropy": self.sums["teacher_cross_entropy"]}
        if "left_out" in self.sums:
            sums["left_out"] = self.sums["teacher_left_out"]
        return replace(self, sums=sums)


@torch.no_grad()
def score(
    student: torch.nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    *,
    vocabulary: int,
    own_ids: int | None = None,
    pad_id: int,
    forward_kl: Divergence,
    reverse_kl: Divergence,
    batch_tokens: int = 2048,
    chunk_bytes: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scores:
    """Score `examples` (their answers' tokens) under the student and against the teacher.

    Args:
        teacher: gives dense signals, or else the likeliest ids, and then `COARSE` is measured; None where its
            distribution cannot be compared, and then only the student's cross-entropy is measured.
        vocabulary: ids that both models share; other rows of either head are cut before the softmax.
        own_ids: ids of the student, where one model has more than both share: then the mass on them is measured.
        batch_tokens: padded tokens of one forward pass.
    """
    form = anatomy.head_form(student)
    device = next(student.parameters()).device
    names = _names(teacher, own_ids)
    row_ids = list(dict.fromkeys(example.row_id for example in examples))
    place = {row_id: index for index, row_id in enumerate(row_ids)}
    totals = torch.zeros(len(row_ids), len(names) + 1, dtype=torch.float64)  # the last column counts tokens
    done = 0
    with evaluating(student):
        for rows in _batches(examples, batch_tokens):
            picked = [examples[row] for row in rows] or [examples[0].silent()]
            batch = collate(picked, pad_id=pad_id).to(device)
            hidden = anatomy.states_of(student, batch)[batch.predicts]
            head = anatomy.head_of(student, vocabulary, form)
            signal = None if teacher is None else teacher.signal(batch.for_teacher)
            chunks = None if signal is None else signal.chunks(forward_kl, "bucket")
            places = torch.tensor([place[examples[row].row_id] for row in rows])
            owner = places[batch.predicts.nonzero()[:, 0].cpu()]
            step = chunk_rows(vocabulary, wide(hidden.dtype), chunk_bytes, device) // 2
            for start in range(0, batch.count, step):
                part = slice(start, min(start + step, batch.count))
                columns: tuple[Tensor, ...]
                logits, target = plain_logits(head, hidden[part]), batch.targets[part].unsqueeze(-1)
                if teacher is None or signal is None or chunks is None:
                    columns = (-tempered(logits, 1.0).gather(1, target).squeeze(-1),)
                else:
                    sides = chunks(part, logits).beside(logits, slice(0, len(logits)), 1.0)
                    compare = _compared if "dense" in teacher.provides else _coarse
                    columns = compare(sides, target, forward_kl, reverse_kl)
                    if UNSTATED in names:
                        columns += (sides.unstated,)
                    elif len(names) > len(columns):
                        assert own_ids is not None
                        zero = torch.zeros_like(columns[0])
                        beyond = (
                            mass_beyond(head.cut(own_ids), hidden[part], vocabulary),
                            left_out(signal, vocabulary, part),
                        )
                        columns += tuple(zero if mass is None else mass for mass in beyond)
                values = torch.stack(
                    [exact.wide(column) for column in (*columns, torch.ones_like(columns[0]))], -1
                )
                totals.index_add_(0, owner[part], values.cpu())
            done += len(rows) * ranks.world()
            on_progress(min(done, len(examples)), len(examples))
    *sums, tokens = map(tuple, ranks.total(totals).T.tolist())
    return Scores(tuple(row_ids), tokens, dict(zip(names, sums, strict=True)))


def _names(teacher: Teacher | None, own_ids: int | None) -> tuple[str, ...]:
    if teacher is None:
        return ("cross_entropy",)
    if "dense" not in teacher.provides:
        return COARSE if own_ids is None else (*COARSE, UNSTATED)
    return NAMES if own_ids is None else NAMES + LEFT_OUT


def _batches(examples: Sequence[Example], tokens: int) -> Sequence[list[int]]:
    """This process's batches of rows: as many as every other one has, the last one perhaps empty."""
    batches = by_length([len(example.input_ids) for example in examples], tokens)
    return ranks.mine([*batches, *[[]] * (-len(batches) % ranks.world())])


def _compared(
    sides: Support, target: Tensor, forward_kl: Divergence, reverse_kl: Divergence
) -> tuple[Tensor, ...]:
    """A column [N] for each of NAMES; `target` is [N, 1]."""
    student, teacher = sides.student_lp, sides.teacher_lp
    favourite = teacher.argmax(-1, keepdim=True)
    return (
        forward_kl.value(student, teacher),
        reverse_kl.value(student, teacher),
        -student.gather(1, target).squeeze(-1),
        -teacher.gather(1, target).squeeze(-1),
        (student.argmax(-1, keepdim=True) == favourite).squeeze(-1),
        (student.topk(min(5, student.shape[1])).indices == favourite).any(-1),
    )


def _coarse(
    sides: Support, target: Tensor, forward_kl: Divergence, reverse_kl: Divergence
) -> tuple[Tensor, ...]:
    """A column [N] for each of COARSE, of a support with stored ids; `target` is [N, 1].

    Merging outcomes never raises a KL (the log-sum inequality, Cover and Thomas, theorem 2.7.1).
    """
    assert sides.ids is not None
    stated = sides.teacher_lp[:, : sides.ids.shape[1]].exp().sum(-1)
    return (
        -sides.full_lp.gather(1, target).squeeze(-1),
        forward_kl.value(sides.student_lp, sides.teacher_lp),
        reverse_kl.value(sides.student_lp, sides.teacher_lp),
        stated,
    )
