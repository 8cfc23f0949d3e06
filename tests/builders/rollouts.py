"""Rows that a student wrote, scored by hand, and what a term makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from potstill.data.batch import collate
from potstill.objectives.terms import StudentView, prepared
from potstill.signals.dense import Dense
from potstill.types import Batch, Example, Head, Origin


def row(
    name: str,
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
    *,
    origin: Origin = "student",
    student: tuple[float, ...] | None = None,
    teacher: tuple[float, ...] | None = None,
    of: str | None = None,
) -> Example:
    """A row with its answer scored; log-probabilities of the answer when it was drawn; `of` is the row that it answers."""
    scored = (False,) * len(prompt) + (True,) * len(answer)
    return Example(name, prompt + answer, scored, origin, answers=of, student_lp=student, teacher_lp=teacher)


def view(batch: Batch, logits: Tensor) -> StudentView:
    """A student that says these logits [N, V]: its head is the identity."""
    width = logits.shape[1]
    head = Head(torch.eye(width, dtype=logits.dtype), width)
    return StudentView(logits, head, batch, 2**20)


def gradient(term: Any, batch: Batch, logits: Tensor, teacher: Tensor | None = None) -> tuple[Any, Tensor]:
    """A prepared term's loss on a batch, and its gradient by the logits."""
    ((_, term),) = prepared(term, [batch])
    leaf = logits.clone().requires_grad_()
    loss = term(view(batch, leaf), Dense(torch.zeros_like(logits) if teacher is None else teacher))
    loss.sum.backward()
    assert leaf.grad is not None
    return replace(loss, sum=loss.sum.detach()), leaf.grad


def batch_of(*rows: Example, packed: bool = False) -> Batch:
    return collate(rows, pad_id=0, packed=packed)
