"""Rows as prompts, with room for an answer in both models."""

from __future__ import annotations

from typing import Any

import pytest

from builders.chats import chat
from builders.tiny import BOS, HEADER, TEMPLATE
from data.test_reader import reader
from potstill.data.prompts import Prompt, prompts
from potstill.data.reader import Readers
from potstill.data.rows import Row
from potstill.errors import DataError

ALIKE = Readers(reader(), reader())
LONGER = Readers(reader(), reader(template="w5 w6 w7 " + TEMPLATE))


def ask(readers: Readers, rows: list[Row], **changes: Any):
    settings: dict[str, Any] = {"train_ids": {"a"}, "new_tokens": 4, "samples": 3, "max_length": 8}
    return prompts(readers, rows, **settings | changes)


def test_only_rows_to_train_on_get_several_answers() -> None:
    kept, left_out = ask(ALIKE, [Row("a", chat("w10")), Row("b", chat("w12"))])
    assert kept == [Prompt("a", (BOS, 10, HEADER), 3), Prompt("b", (BOS, 12, HEADER), 1)]
    assert not left_out


def test_an_answer_must_fit_into_both_models() -> None:
    rows = [Row("a", chat("w10")), Row("b", chat("w10 w10 w10")), Row("c", chat("w12"))]
    kept, left_out = ask(ALIKE, rows)
    assert [prompt.row_id for prompt in kept] == ["a", "c"]
    assert left_out == {"measured prompt too long": 1}
    with pytest.raises(DataError, match=r"none of the 3 prompts .*3 prompt too long.* leaves 4 tokens"):
        ask(LONGER, rows)


def test_a_teacher_without_a_reader_gets_the_students_ids() -> None:
    kept, _ = ask(Readers(None, reader()), [Row("a", chat("w10"))])
    assert kept == [Prompt("a", (BOS, 10, HEADER), 3)]


def test_a_row_that_cannot_be_rendered_stops_or_is_counted() -> None:
    rows = [Row("a", chat("w10")), Row("b", (), source="rows.jsonl:2")]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the conversation is empty"):
        ask(ALIKE, rows)
    kept, left_out = ask(ALIKE, rows, on_bad_row="skip")
    assert [prompt.row_id for prompt in kept] == ["a"]
    assert left_out == {"measured prompt refused by the template": 1}


def test_plain_text_is_refused_even_where_bad_rows_are_skipped() -> None:
    with pytest.raises(DataError, match="plain text"):
        ask(ALIKE, [Row("a", text="w10", source="rows.jsonl:1")], on_bad_row="skip")
