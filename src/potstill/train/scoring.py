"""What student and teacher say of tokens that were drawn: the numbers that a policy gradient starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn

from potstill.data.batch import collate
from potstill.data.plan import by_length
from potstill.devices import ranks
from potstill.models.beside import evaluating
from potstill.objectives.drawn import STUDENT_LP, TEACHER_LP, DrawnTokens
from potstill.signals.teacher import Teacher
from potstill.signals.text import Text
from potstill.types import Example


@torch.no_grad()
def score(
    module: nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    *,
    pad_id: int,
    micro_batch_tokens: int,
    packed: bool = False,
    before_batch: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Give each example the log-probabilities of its scored tokens, at T = 1 over the ids that both models share.

    The student computes them as in a training step, without dropout; logits exist a chunk at a time. Every
    process calls this together, also one without examples: all make as many forward passes.

    Args:
        module: the `StudentModule`, as it is wrapped for training.
        teacher: a source of dense signals; None leaves `teacher_lp` as it is.
        examples: this process's own; the result has their order.
        pad_id: pads a batch, and is the text of a pass that keeps other processes company.
        micro_batch_tokens: most tokens of one forward pass, padding included.
        packed: lay the rows of a pass end to end.
        before_batch: called before each pass; may raise to stop.

    Raises:
        SignalError: the teacher's signal is not a whole distribution.
    """
    device = next(module.parameters()).device
    batches = by_length([e.width for e in examples], micro_batch_tokens, packing=packed)
    batches += [[]] * (ranks.highest(len(batches)) - len(batches))
    company = Example("company", (pad_id, pad_id), (False, False))
    scored = list(examples)
    with evaluating(module):
        for rows in batches:
            before_batch()
            picked = [examples[row] for row in rows]
            batch = collate(picked or [company], pad_id=pad_id, packed=packed).to(device)
            signal = Text() if teacher is None else teacher.signal(batch.for_teacher)
            _, _, values = module(batch, signal, DrawnTokens())
            student = values[STUDENT_LP].tolist()
            of_teacher = values[TEACHER_LP].tolist() if TEACHER_LP in values else None
            begin = 0
            for row, example in zip(rows, picked, strict=True):
                part = slice(begin, begin := begin + example.count)
                lp = example.teacher_lp if of_teacher is None else tuple(of_teacher[part])
                scored[row] = replace(example, student_lp=tuple(student[part]), teacher_lp=lp)
    return scored
