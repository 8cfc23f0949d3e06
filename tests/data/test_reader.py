"""How two models' readings of text compare."""

from __future__ import annotations

import pytest

from builders.chats import bytes_tokenizer, chat
from builders.reading import SWAPPED, reader
from builders.tiny import BOS, EOS, HEADER, PAD, TEMPLATE, tiny_tokenizer
from potstill.data.prompts import prompts
from potstill.data.questions import questions
from potstill.data.reader import Readers, reader_of
from potstill.data.rows import Row
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
    readers = Readers(reader(), reader(names=SWAPPED))
    assert not readers.comparable
    assert not readers.shared_vocabulary
    assert not readers.read_alike


@pytest.mark.parametrize(("teacher", "student"), [(130, 128), (128, 130)])
def test_a_vocabulary_that_goes_on_behind_the_other_shares_the_ids_of_the_smaller(teacher, student) -> None:
    readers = Readers(reader(teacher), reader(student))
    assert readers.comparable
    assert readers.shared_ids == 128
    assert readers.foreign([5, 127, 128, 129]) == [128, 129]
    assert not readers.shared_vocabulary
    assert not readers.read_alike, "the same text may be other ids"


def test_batches_of_both_models_are_padded_with_an_id_that_both_have() -> None:
    names = {0: "w0", 128: "<pad>"}
    assert Readers(reader(), reader(129, names=names)).padding == 0
    assert Readers(reader(), reader()).padding == PAD


def test_a_teacher_without_a_reader_shares_nothing() -> None:
    readers = Readers(None, reader())
    assert not readers.shared_vocabulary
    assert not readers.read_alike


def test_ids_that_stand_for_nothing_are_unused_and_ids_that_only_the_map_lacks_are_not(monkeypatch) -> None:
    holes = reader(names={40: "", 41: ""})
    assert holes.unused_ids == (40, 41)
    assert reader().unused_ids == ()
    holes = reader(names={40: "", 41: ""})

    def decode(ids, **settings):
        if ids == [41]:
            raise IndexError(ids)
        return "w40"

    monkeypatch.setattr(holes.tokenizer, "decode", decode)
    assert holes.unused_ids == (41,)


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


SHOWING = "{{ bos_token }}{{ mask_token }}" + TEMPLATE.removeprefix("{{ bos_token }}")


@pytest.mark.parametrize("special", ["bos_token", "eos_token", "mask_token"])
def test_another_special_token_that_one_template_prints_reads_differently(special: str) -> None:
    teacher, student = tiny_tokenizer(template=SHOWING), tiny_tokenizer(template=SHOWING)
    setattr(teacher, special, "w99")
    readers = Readers(*(reader_of(tokenizer, Templater(tokenizer)) for tokenizer in (teacher, student)))
    assert readers.shared_vocabulary
    assert not readers.read_alike
    assert readers.other_templater is readers.teacher_reader.templater


@pytest.mark.parametrize("special", ["pad_token", "unk_token"])
def test_a_special_token_that_nobody_prints_changes_nothing(special: str) -> None:
    teacher, student = tiny_tokenizer(), tiny_tokenizer()
    setattr(teacher, special, "w99")
    assert Readers(
        *(reader_of(tokenizer, Templater(tokenizer)) for tokenizer in (teacher, student))
    ).read_alike


def test_another_way_to_split_text_reads_differently_with_the_same_vocabulary() -> None:
    from tokenizers.normalizers import Replace

    teacher, student = bytes_tokenizer(), bytes_tokenizer()
    teacher.backend_tokenizer.normalizer = Replace("2", "3")
    readers = Readers(*(reader_of(tokenizer, Templater(tokenizer)) for tokenizer in (teacher, student)))
    assert readers.shared_vocabulary
    assert not readers.read_alike


def test_each_model_is_asked_with_its_own_start_token() -> None:
    teacher, student = tiny_tokenizer(), tiny_tokenizer()
    teacher.bos_token = "</s>"
    readers = Readers(*(reader_of(tokenizer, Templater(tokenizer)) for tokenizer in (teacher, student)))
    row = Row("r", chat("w10", "w20"))
    examples = readers.student.templater.encode_row(row)
    (question,) = questions(readers, examples, [row], 1, generated=False)
    assert (question.teacher_prompt_ids, question.prompt_ids) == ((EOS, 10, HEADER), (BOS, 10, HEADER))
    kept, _ = prompts(readers, [row], train_ids=["r"], heldout_ids=[], new_tokens=4, samples=1, max_length=20)
    assert kept[0].ids == (EOS, 10, HEADER)
