"""A teacher's answers as the student's examples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders.chats import chat
from builders.reading import reader
from builders.tiny import BOS, EOS, HEADER
from potstill.data.answers import Written, by_prompt, encode_answers, with_weights
from potstill.data.reader import Readers
from potstill.data.rows import Row
from potstill.errors import DataError
from potstill.types import Example

ALIKE = Readers(reader(), reader())
ROWS = [Row("a", chat("w10")), Row("b", chat("w12"))]


@pytest.mark.parametrize("teacher", [reader(), reader(130), None])
def test_ids_or_text_become_the_same_example(teacher) -> None:
    answers = [Written("a", 0, (20, 21, EOS), "w20 w21", "stop")]
    (example,), left_out = encode_answers(Readers(teacher, reader()), answers, ROWS, max_length=9)
    assert example.input_ids == (BOS, 10, HEADER, 20, 21, EOS)
    assert example.scored == (False, False, False, True, True, True)
    assert example.origin == "teacher"
    assert not left_out


def test_an_answer_cut_off_gets_no_end_token() -> None:
    (example,), _ = encode_answers(ALIKE, [Written("a", 0, (20,), "w20", "length")], ROWS, max_length=9)
    assert example.input_ids[-1] == 20


def test_later_samples_are_parts_of_their_row() -> None:
    answers = [Written("a", n, (20 + n, EOS), f"w{20 + n}", "stop") for n in range(2)]
    examples, _ = encode_answers(ALIKE, answers, ROWS, max_length=9)
    assert [(e.id, e.row_id) for e in examples] == [("a", "a"), ("a#1", "a")]


def test_unusable_answers_are_counted_and_all_of_them_are_an_error() -> None:
    long = Written("b", 0, (20,) * 9, "w20 " * 9, "length")
    empty = Written("a", 0, (EOS,), " ", "stop")
    good = Written("a", 1, (20, EOS), "w20", "stop")
    other = Written("elsewhere", 0, (EOS,), "", "stop")
    _, left_out = encode_answers(ALIKE, [empty, long, good, other], ROWS, max_length=9)
    assert left_out == {"empty answer": 1, "answer too long for the student": 1}
    with pytest.raises(
        DataError, match=r"none of the teacher's 2 answers .*1 empty answer, 1 answer too long"
    ):
        encode_answers(ALIKE, [empty, long], ROWS, max_length=9)
    assert encode_answers(ALIKE, [other], ROWS, max_length=9) == ([], {})


def test_answers_to_one_prompt_are_parts_of_its_first_row() -> None:
    rows = [*ROWS, Row("c", chat(" W10 "))]
    examples, _ = encode_answers(
        ALIKE, [Written(r.id, 0, (20, EOS), "w20", "stop") for r in rows], rows, max_length=9
    )
    assert [example.row_id for example in by_prompt(examples, rows)] == ["a", "b", "a"]


def test_weights_that_are_all_zero_weigh_nothing() -> None:
    rows = [replace(row, extra={"w": "0"}) for row in ROWS]
    examples, _ = encode_answers(ALIKE, [Written("a", 0, (20, EOS), "w20", "stop")], rows, max_length=9)
    assert with_weights(examples, rows, None) == examples
    assert with_weights(examples, rows, "w", needed=False) == examples
    with pytest.raises(DataError, match="is 0 in every training row"):
        with_weights(examples, rows, "w")
    assert with_weights([], rows, "w") == []


def test_a_prompt_whose_first_row_was_dropped_has_the_id_of_the_next_row():
    rows = [
        Row(name, ({"role": "user", "content": text},))
        for name, text in (("a", "W5 w6"), ("b", "w5  w6"), ("c", "w5 w6"))
    ]
    kept = [Example(name, (1, 5), (False, True)) for name in ("b", "c")]
    assert [e.row_id for e in by_prompt(kept, rows)] == ["b", "b"]
