"""Held-out rows as questions."""

from __future__ import annotations

import logging

import pytest

from builders.chats import chat
from builders.reading import reader
from builders.tiny import BOS, HEADER, TEMPLATE
from potstill.data.questions import longest_answer, questions, with_room
from potstill.data.reader import Readers
from potstill.data.rows import Row

ALIKE = Readers(reader(), reader())
ROW = Row("a", chat("w10", "w20 w21", "w12", "w22"), extra={"family": "sums", "unseen": "yes"})
EXAMPLES = ALIKE.student.templater.encode_row(ROW)


def test_a_row_of_data_asks_its_first_question() -> None:
    (question,) = questions(ALIKE, EXAMPLES, [ROW], 9, generated=False)
    assert question.prompt_ids == question.teacher_prompt_ids == (BOS, 10, HEADER)
    assert (question.prompt, question.gold, question.tokens) == ("w10", "w20 w21", 3)
    assert (question.family, question.unseen) == ("sums", True)


def test_each_row_asks_once_and_at_most_the_first_rows() -> None:
    rows = [ROW, Row("b", chat("w12", "w30"))]
    examples = [*EXAMPLES, *EXAMPLES, *ALIKE.student.templater.encode_row(rows[1])]
    assert [q.row_id for q in questions(ALIKE, examples, rows, 9, generated=False)] == ["a", "b"]
    assert [q.row_id for q in questions(ALIKE, examples, rows, 1, generated=False)] == ["a"]


def test_the_teacher_reads_the_prompt_by_its_template() -> None:
    readers = Readers(reader(template="w5 " + TEMPLATE), reader())
    (question,) = questions(readers, EXAMPLES, [ROW], 9, generated=False)
    assert question.teacher_prompt_ids == (5, BOS, 10, HEADER)
    assert question.length == 4


def test_questions_leave_room_for_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    asked = questions(ALIKE, EXAMPLES, [ROW], 9, generated=False)
    assert longest_answer(asked, 10, context=8) == 5
    assert longest_answer([], 10, context=8) == 8
    assert with_room(asked, 5, context=8) == asked
    with caplog.at_level(logging.WARNING):
        assert with_room(asked, 6, context=8) == []
    assert "1 of 1 held-out prompts leave no room for 6 new tokens" in caplog.text
