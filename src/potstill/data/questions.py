"""Held-out rows as questions that models answer in text."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from potstill.data.prompts import prompt_ids
from potstill.data.reader import Readers
from potstill.data.rows import Row
from potstill.types import Example

log = logging.getLogger("potstill")

_NO = ("", "0", "0.0", "false", "no")


@dataclass(frozen=True)
class Question:
    """A held-out prompt in both models' ids, with the answers that texts are compared with.

    `gold` is the data's answer, "" where the row holds none; `written` the teacher's, "" where it wrote none.
    """

    row_id: str
    prompt_ids: tuple[int, ...]
    teacher_prompt_ids: tuple[int, ...]
    prompt: str
    gold: str
    tokens: int  # of the answer that the models are scored on: the teacher's where it wrote one
    written: str = ""
    last_turn: str = ""  # what the user said last
    family: str = ""
    unseen: bool = False
    turns: tuple[tuple[str, str], ...] = ()  # (role, text) of the prompt

    @property
    def reference(self) -> str:
        """What an answer is compared with first: the data's answer, else the teacher's."""
        return self.gold or self.written

    @property
    def length(self) -> int:
        """Tokens of the prompt, in the model that needs more."""
        return max(len(self.prompt_ids), len(self.teacher_prompt_ids))


def questions(
    readers: Readers, examples: Sequence[Example], rows: Sequence[Row], most: int, *, generated: bool
) -> list[Question]:
    """Turn the first `most` held-out rows, each once, into prompt and first answer.

    `generated` says that the teacher wrote the answers: it was given the whole conversation. A row of data
    is asked its first question.

    Raises:
        DataError: the teacher's template refuses a prompt that the student's accepts; names the row.
    """
    by_id = {row.id: row for row in rows}
    result: dict[str, Question] = {}
    for example in examples:
        row = by_id.get(example.row_id)
        if row is None or row.id in result or row.text is not None:
            continue
        if len(result) >= most:
            break
        turns = row.prompt if generated else row.asked
        question = _question(readers, example, replace(row, messages=turns))
        if generated:
            gold = "" if row.gold is None else readers.student.templater.answer_text(row.gold)
            question = replace(question, gold=gold, written=question.gold)
        result[row.id] = question
    return list(result.values())


def unanswered(readers: Readers, rows: Sequence[Row]) -> list[Question]:
    """Turn held-out rows to which the teacher has no answer into prompts: whoever measures it counts them as missed."""
    templater = readers.student.templater
    return [
        _asked(
            replace(row, messages=row.prompt),
            tuple(prompt_ids(templater, row)),
            tuple(prompt_ids(readers.of_prompts.templater, row.for_teacher)),
            gold="" if row.gold is None else templater.answer_text(row.gold),
            tokens=0,
        )
        for row in rows
        if row.text is None
    ]


def _question(readers: Readers, example: Example, row: Row) -> Question:
    """The example's first answer as the data's; `row` holds the prompt's turns alone."""
    start = example.scored.index(True)
    rest = example.scored[start:]
    length = rest.index(False) if False in rest else len(rest)
    prompt = teacher_prompt = example.input_ids[:start]
    if readers.teacher is not None and not readers.read_alike:
        teacher_prompt = tuple(prompt_ids(readers.teacher.templater, row.for_teacher))
    gold = readers.student.decode(example.input_ids[start : start + length])
    return _asked(row, prompt, teacher_prompt, gold=gold, tokens=length)


def _asked(
    row: Row, prompt: tuple[int, ...], teacher_prompt: tuple[int, ...], *, gold: str, tokens: int
) -> Question:
    """A row that holds the prompt's turns alone as a question."""
    return Question(
        row_id=row.id,
        prompt_ids=prompt,
        teacher_prompt_ids=teacher_prompt,
        prompt="\n".join(message["content"] for message in row.messages),
        gold=gold,
        tokens=tokens,
        last_turn=row.messages[-1]["content"] if row.messages else "",
        family=str(row.extra.get("family") or ""),
        unseen=str(row.extra.get("unseen") or "").strip().casefold() not in _NO,
        turns=tuple((message["role"], message["content"]) for message in row.messages),
    )


def longest_answer(questions: Sequence[Question], new_tokens: int, *, context: int) -> int:
    """The number of new tokens that every question leaves room for, at most `new_tokens`."""
    return max(1, min(new_tokens, context - max((q.length for q in questions), default=0)))


def with_room(questions: Sequence[Question], new_tokens: int, *, context: int) -> list[Question]:
    """Drop the questions that leave no room for `new_tokens` in both models' context."""
    fit = [question for question in questions if question.length <= context - new_tokens]
    if len(fit) < len(questions):
        log.warning(
            "%d of %d held-out prompts leave no room for %d new tokens in a context of %d; "
            "they are not answered in text",
            len(questions) - len(fit), len(questions), new_tokens, context,
        )  # fmt: skip
    return fit
