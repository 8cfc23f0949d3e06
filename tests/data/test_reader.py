"""How two models' readings of text compare."""

from __future__ import annotations

from builders.reading import reader
from builders.tiny import EOS, PAD, TEMPLATE, tiny_tokenizer
from potstill.data.reader import Readers, reader_of
from potstill.data.template import Templater


def test_equal_tokenizers_and_templates_read_alike() -> None:
    readers = Readers(reader(), reader())
    assert readers.shared_vocabulary
    assert readers.read_alike


def test_another_template_reads_differently_with_the_same_vocabulary() -> None:
    readers = Readers(reader(), reader(template=TEMPLATE.replace("{{ bos_token }}", "")))
    assert readers.shared_vocabulary
    assert not readers.read_alike


def test_another_vocabulary_shares_nothing() -> None:
    readers = Readers(reader(128), reader(130))
    assert not readers.shared_vocabulary
    assert not readers.read_alike


def test_a_teacher_without_a_reader_shares_nothing() -> None:
    readers = Readers(None, reader())
    assert not readers.shared_vocabulary
    assert not readers.read_alike


def test_rows_are_padded_with_the_padding_token_then_the_end_token_then_id_0() -> None:
    tokenizer = tiny_tokenizer()
    assert reader_of(tokenizer, Templater(tokenizer)).pad_id == PAD
    tokenizer.pad_token = None
    assert reader_of(tokenizer, Templater(tokenizer)).pad_id == EOS
    templater = Templater(tokenizer)
    tokenizer.eos_token = None
    assert reader_of(tokenizer, templater).pad_id == 0


def test_special_tokens_are_no_text() -> None:
    assert reader().decode((20, 21, EOS)) == "w20 w21"
    assert reader().stop_ids == (EOS,)
