"""Sequence-level distillation trains on the response's ids alone, whoever the teacher is."""

from __future__ import annotations

from itertools import compress

import pytest

from builders.chats import chat
from builders.reading import SWAPPED, reader
from builders.tiny import EOS
from potstill.data.answers import Written, encode_answers
from potstill.data.reader import Readers
from potstill.data.rows import Row

TEACHERS = {"the student's ids": reader(), "other ids": reader(names=SWAPPED), "served, text alone": None}
CONVERSATION = Row(
    "a",
    (
        {"role": "user", "content": "w10 w11x"},
        {"role": "assistant", "content": "w12"},
        {"role": "user", "content": "w13 w14"},
    ),
)


@pytest.mark.parametrize("finish", ["stop", "length"])
@pytest.mark.parametrize("row", [Row("a", chat("w13 w14")), CONVERSATION], ids=["one turn", "conversation"])
@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS)
def test_the_prompt_stands_once_and_only_the_response_is_scored(teacher, row: Row, finish: str) -> None:
    """Also where the teacher begins by repeating the prompt: that is its response then, once."""
    student = reader()
    text = "w13 w14 w20"
    ids = () if teacher is None else tuple(teacher.tokenizer.encode(text, add_special_tokens=False))
    written = Written("a", 0, (*ids, EOS) if ids and finish == "stop" else ids, text, finish)
    (example,), left_out = encode_answers(Readers(teacher, student), [written], [row], max_length=40)
    prompt = student.templater.prompt_ids(row.prompt, row.tools)
    response = [13, 14, 20]
    assert not left_out
    assert list(example.prompt) == prompt
    assert list(compress(example.input_ids, example.scored)) == response + [EOS] * (finish == "stop")
    assert list(example.input_ids) == prompt + response + [EOS] * (finish == "stop")
    assert example.count == len(response) + (finish == "stop")
