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
        vocabulary.require_same(one, other)
    vocabulary.require_same(one, vocabulary.Vocabulary(dict(one.tokens), one.special))


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
