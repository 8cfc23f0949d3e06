"""Held-out rows as questions, those to which a served teacher has no answer among them where a task can count them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from potstill.data import questions as data_questions
from potstill.data.questions import Question
from potstill.stages._context import Context, State
from potstill.stages._rows import ANSWERS, REJECTED, heldout
from potstill.store.lines import read_lines


def questions(state: State, context: Context, most: int) -> list[Question]:
    """The first `most` held-out rows as prompts with their reference answers; with a task also those to which the
    teacher has none."""
    rows, task = context.setup.data.heldout, context.setup.task
    asked = data_questions.questions(
        context.setup.readers, heldout(state, context), rows, most, generated=state.answers is not None
    )
    if task is not None and (lacking := without_answer(state, context)):
        place = {row.id: number for number, row in enumerate(rows)}
        missed = data_questions.unanswered(context.setup.readers, [r for r in rows if r.id in lacking])
        asked = sorted([*asked, *missed], key=lambda question: place[question.row_id])[:most]
    if task is None or task.gold is None:
        return asked
    gold = {row.id: task.gold_of(row) for row in rows}
    return [replace(question, gold=gold[question.row_id]) for question in asked]


def without_answer(state: State, context: Context) -> Mapping[str, str]:
    """The held-out rows to which a served teacher gave no answer that can be used, with the reason."""
    if state.written is None or context.setup.readers.teacher is not None:
        return {}
    reasons = {line["row_id"]: line["reason"] for line in read_lines(state.written.path / REJECTED)}
    answered = {line["row_id"] for line in read_lines(state.written.path / ANSWERS)}
    every = [row.id for row in context.setup.data.heldout]
    return {name: reasons[name] for name in every if name in reasons and name not in answered}
