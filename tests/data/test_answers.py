"""A teacher's answers as the student's examples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import chats
from builders.chats import bytes_tokenizer, chat
from builders.reading import SWAPPED, reader, scored
from builders.tiny import BOS, EOS, HEADER, UNK, tiny_tokenizer
from potstill.data.answers import Written, by_prompt, encode_answers, with_weights
from potstill.data.reader import Readers, reader_of
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.models.vocabulary import Overlap
from potstill.types import Example

ALIKE = Readers(reader(), reader())
ROWS = [Row("a", chat("w10")), Row("b", chat("w12"))]


@pytest.mark.parametrize("teacher", [reader(), reader(130), reader(names={30: "w31", 31: "w30"}), None])
def test_ids_or_text_become_the_same_example(teacher) -> None:
    answers = [Written("a", 0, (20, 21, EOS), "w20 w21", "stop")]
    (example,), left_out = encode_answers(Readers(teacher, reader()), answers, ROWS, max_length=9)
    assert example.input_ids == (BOS, 10, HEADER, 20, 21, EOS)
    assert example.scored == (False, False, False, True, True, True)
    assert example.origin == "teacher"
    assert not left_out


def test_an_answer_cut_off_gets_no_end_token() -> None:
    """Field case 77."""
    (example,), _ = encode_answers(ALIKE, [Written("a", 0, (20,), "w20", "length")], ROWS, max_length=9)
    assert example.input_ids[-1] == 20


@pytest.mark.parametrize(
    ("text", "finish", "learnt"),
    [
        ("w20 \ufffd", "length", [20]),
        ("w20 w21\ufffd\ufffd", "length", [20, 21]),
        ("w20 w21", "length", [20, 21]),
    ],
)
@pytest.mark.parametrize("teacher", [reader(names=SWAPPED), None])
def test_a_character_cut_in_half_does_not_cross(teacher, text, finish, learnt) -> None:
    """The student of another tokenizer was once scored on the sign that stands for half a character."""
    (example,), left_out = encode_answers(
        Readers(teacher, reader()), [Written("a", 0, (9,), text, finish)], ROWS, max_length=9
    )
    assert (scored(example), dict(left_out)) == (learnt, {})


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("w20 \ufffd w21", "length", "half a character in the answer"),
        ("w20 \ufffd", "stop", "half a character in the answer"),
        ("\ufffd\ufffd", "length", "empty answer"),
    ],
)
def test_what_cannot_be_cut_back_is_left_out_and_counted(text, finish, reason) -> None:
    answers = [Written("a", 0, (9,), text, finish), Written("b", 0, (20, EOS), "w20", "stop")]
    examples, left_out = encode_answers(Readers(reader(names=SWAPPED), reader()), answers, ROWS, max_length=9)
    assert ([example.id for example in examples], dict(left_out)) == (["b"], {reason: 1})


def test_ids_that_pass_unchanged_keep_their_half_character() -> None:
    (example,), _ = encode_answers(
        ALIKE, [Written("a", 0, (20, 21), "w20 \ufffd", "length")], ROWS, max_length=9
    )
    assert scored(example) == [20, 21]


def test_answers_in_ids_that_the_teacher_lacks_are_left_out_of_a_comparison(caplog) -> None:
    """As text an answer can become ids of the student alone; a teacher that is given them knows no such id."""
    answers = [
        Written("a", 0, (9,), "w20 w130", "stop"),
        Written("b", 0, (20, EOS), "w20", "stop"),
    ]
    alone = Readers(None, reader(160))
    examples, left_out = encode_answers(alone, answers, ROWS, max_length=9, known_ids=128)
    assert [example.id for example in examples] == ["b"]
    assert left_out == {"holds ids that the teacher does not have": 1}
    assert "1 of 2 examples (50%)" in caplog.text
    assert "id 130 ('w130')" in caplog.text
    examples, left_out = encode_answers(alone, answers, ROWS, max_length=9)
    assert [example.id for example in examples] == ["a", "b"]
    assert not left_out


def test_a_word_that_the_student_cannot_write_is_left_out_between_any_two_tokenizers() -> None:
    readers = Readers(reader(160, names=SWAPPED), reader())
    answers = [Written("a", 0, (130, EOS), "w130", "stop"), Written("b", 0, (21, EOS), "w20", "stop")]
    examples, left_out = encode_answers(readers, answers, ROWS, max_length=9)
    assert [scored(example) for example in examples] == [[20, EOS]]
    assert left_out == {"a word that the student's tokenizer does not have": 1}


def test_a_start_or_end_token_that_stands_for_unknown_words_too_is_no_unknown_word() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = "</s>"
    assert reader_of(tokenizer, Templater(tokenizer)).unknown_id is None
    assert reader().unknown_id == UNK


def byte_reader(tail: str = ""):
    tokenizer = bytes_tokenizer(chats.CHATML.replace("assistant\n{%", f"assistant\n{tail}{{%"))
    return reader_of(tokenizer, Templater(tokenizer))


OPENS, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("teacher", "student", "text", "learnt"),
    [
        (OPENS, "", "2+2\n</think>\n\n4", "<think>\n2+2\n</think>\n\n4"),
        ("", OPENS, "<think>\n2+2\n</think>\n\n4", "2+2\n</think>\n\n4"),
        (OPENS, OPENS, "2+2\n</think>\n\n4", "2+2\n</think>\n\n4"),
        ("", "", "<think>\n2+2\n</think>\n\n4", "<think>\n2+2\n</think>\n\n4"),
        (CLOSED, "", "4", "4"),
        ("", CLOSED, "4", "4"),
        (OPENS, "", "2+2", "<think>\n2+2"),
        ("", OPENS, "<think>\n2+2", "2+2"),
    ],
)
@pytest.mark.parametrize("shared", [True, False])
def test_an_answer_crosses_with_one_block(teacher, student, text, learnt, shared) -> None:
    left, right = byte_reader(teacher), byte_reader(student)
    readers = Readers(left, right)
    if not shared:
        readers.__dict__["overlap"] = Overlap(0, example="nothing is shared")
    ids = (*left.templater.text_ids(text), left.stop_ids[0])
    (example,), left_out = encode_answers(readers, [Written("a", 0, ids, text, "stop")], ROWS, max_length=99)
    assert right.decode(scored(example)) == learnt
    assert example.input_ids[-1] == right.stop_ids[0]
    whole = right.decode(example.input_ids)
    assert whole.count("<think>") == ("think" in learnt or bool(student))
    assert whole.count("</think>") <= 1
    assert not left_out


@pytest.mark.parametrize(
    ("teacher", "student", "text", "reason"),
    [
        ("", OPENS, "4", "the prompt opens <think>, and the answer holds no reasoning"),
        (CLOSED, OPENS, "4", "the prompt opens <think>, and the answer holds no reasoning"),
        ("", CLOSED, "<think>\n2+2\n</think>\n\n4", "the prompt holds a closed <think> block, and the answer holds reasoning"),
        (OPENS, CLOSED, "2+2\n</think>\n\n4", "the prompt holds a closed <think> block, and the answer holds reasoning"),
    ],
)  # fmt: skip
def test_an_answer_that_would_have_two_blocks_or_half_of_one_is_counted(
    teacher, student, text, reason
) -> None:
    readers = Readers(byte_reader(teacher), byte_reader(student))
    ids = tuple(readers.student.templater.text_ids(text))
    with pytest.raises(DataError, match=f"1 {reason}"):
        encode_answers(readers, [Written("a", 0, ids, text, "stop")], ROWS, max_length=99)


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
