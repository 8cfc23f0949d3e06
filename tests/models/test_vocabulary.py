"""Vocabularies are one when their ids mean the same."""

from __future__ import annotations

import pytest

from builders.tiny import tiny_tokenizer
from potstill.errors import VocabularyError
from potstill.models import vocabulary


def test_vocabularies_of_equal_size_that_differ_are_refused_with_the_first_conflict():
    one = vocabulary.read_vocabulary(tiny_tokenizer(128))
    swapped = dict(one.tokens) | {20: one.tokens[21], 21: one.tokens[20]}
    other = vocabulary.Vocabulary(swapped, one.special)
    with pytest.raises(VocabularyError, match="id 20 is 'w20' for the teacher and 'w21' for the student"):
        vocabulary.require_shared(one, other)
    vocabulary.require_shared(one, vocabulary.Vocabulary(dict(one.tokens), one.special))


def named(*words: str, **others: str) -> vocabulary.Vocabulary:
    """Ids in this order, and `i5="a"` for id 5."""
    tokens = dict(enumerate(words)) | {int(name[1:]): word for name, word in others.items()}
    return vocabulary.Vocabulary(tokens, {})


ABC = named("a", "b", "c")


@pytest.mark.parametrize(
    ("teacher", "student", "size", "alone"),
    [
        (ABC, ABC, 3, (0, 0)),
        (named("a", "b", "c", "d"), ABC, 3, (1, 0)),
        (ABC, named("a", "b", "c", "d", "e"), 3, (0, 2)),
        (named("a", "b", "c", i4="x"), ABC, 3, (1, 0)),  # id 3 is unused
        (named("a", "b", i4="x"), named("a", "b", i4="x", i5="y"), 5, (0, 1)),  # on both sides
        (named("a", "b", i4="x"), named("a", "b", i5="y"), 2, (1, 1)),  # both go on, apart
    ],
)
def test_ids_that_one_side_has_behind_the_others_are_no_conflict(teacher, student, size, alone):
    result = vocabulary.require_shared(teacher, student)
    assert result.compatible
    assert (result.size, (result.teacher_only, result.student_only)) == (size, alone)
    assert result.whole == (alone == (0, 0))


@pytest.mark.parametrize(
    ("teacher", "student", "example", "counts"),
    [
        (named("a", "c", "b"), ABC, "id 1 is 'c' for the teacher and 'b' for the student", "ids with another token: 2, tokens with another id: 2"),
        (named("a", "b", "x"), ABC, "id 2 is 'x' for the teacher and 'c' for the student", "ids with another token: 1"),
        (named("a", "b", "c", "d"), named("a", "b", "c", i5="d"), "'d' is id 3 for the teacher and 5 for the student", "tokens with another id: 1"),
        (named("a", "b", "c", "d"), named("a", "b", i3="d"), "id 2 is 'c' for the teacher and None for the student", "ids of one side alone among the shared ones: 1"),
        (named("a"), named(i3="x"), "they have no id in common", "sizes 1 and 4"),
    ],
)  # fmt: skip
def test_conflicts_are_counted_with_an_example(teacher, student, example, counts):
    with pytest.raises(VocabularyError) as caught:
        vocabulary.require_shared(teacher, student)
    assert example in str(caught.value)
    assert counts in str(caught.value)
    assert "generate, finetune" in str(caught.value)


def test_ids_without_a_token_are_named():
    assert named("a", i3="x").unused == (1, 2)
    assert ABC.unused == ()


def test_special_ids_that_differ_between_equal_maps_are_listed():
    one = vocabulary.read_vocabulary(tiny_tokenizer())
    other = vocabulary.Vocabulary(one.tokens, one.special | {"eos": 7, "bos": None})
    assert vocabulary.special_differences(one, one) == ()
    assert vocabulary.special_differences(one, other) == (
        "bos: teacher 1, student None",
        "eos: teacher 2, student 7",
    )


def test_rows_of_a_head_beyond_the_largest_id_are_padding():
    tokens = vocabulary.Vocabulary({0: "a", 5: "b"}, {})
    assert tokens.size == 6
    vocabulary.require_width(6, tokens, "model")
    with pytest.raises(
        VocabularyError, match="the model's output layer has 5 rows but its tokenizer knows 6 ids"
    ):
        vocabulary.require_width(5, tokens, "model")
