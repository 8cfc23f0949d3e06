"""Ids and targets: start tokens, end tokens, several turns, and templates that do it their own way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.chats import bytes_tokenizer, chat
from builders.reading import encode, scored
from builders.tiny import BOS, EOS, HEADER, TEMPLATE, tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError


def test_one_start_token_and_the_end_token_is_learnt() -> None:
    (example,) = encode(Templater(tiny_tokenizer()), "w10", "w20 w21")
    assert example.input_ids == (1, 10, HEADER, 20, 21, 2)
    assert example.scored == (False,) * 3 + (True,) * 3


def test_a_training_row_begins_with_what_inference_is_given() -> None:
    templater = Templater(tiny_tokenizer())
    row = Row("r", chat("w10", "w20", "w12", "w21", system="w5"))
    (example,) = templater.encode_row(row)
    prompt = templater.prompt_ids(row.prompt)
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert prompt.count(BOS) == 1


def test_data_and_a_generation_of_the_same_text_score_the_same() -> None:
    templater = Templater(tiny_tokenizer())
    row = Row("r", chat("w10", "w20 w21"))
    stubbed = templater.generated("r", templater.prompt_ids(row.prompt), [20, 21], "data")
    assert [stubbed] == templater.encode_row(row)


@given(st.lists(st.integers(3, 127), min_size=1), st.lists(st.integers(3, 127)), st.booleans())
def test_joining_keeps_every_id(prompt: list[int], completion: list[int], end: bool) -> None:
    joined = Templater(tiny_tokenizer()).generated("r", prompt, completion, "teacher", end)
    assert list(joined.input_ids) == prompt + completion + [EOS] * end
    assert joined.origin == "teacher"


def test_an_answer_that_already_stopped_gets_no_second_end() -> None:
    example = Templater(tiny_tokenizer()).generated("r", [1, 10], [20, EOS], "teacher")
    assert example.input_ids == (1, 10, 20, EOS)


def test_the_templates_end_token_stops_before_the_tokenizers() -> None:
    tokenizer = bytes_tokenizer()
    stops = Templater(tokenizer).stop_ids
    assert tokenizer.convert_ids_to_tokens(list(stops)) == ["<|im_end|>", "</s>"]


@pytest.mark.parametrize("end", ["", "</s>", "</s>\n", "</s></s>", "</s> </s>"])
def test_every_document_has_one_end_token(end: str) -> None:
    (example,) = Templater(tiny_tokenizer()).encode_row(Row("t", text="w10 w20 " + end))
    assert example.input_ids == (10, 20, EOS)


def test_an_answer_that_is_nothing_but_an_end_token_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:7: an answer is nothing but an end token"):
        encode(Templater(tiny_tokenizer()), "w10", "</s>")


@pytest.mark.parametrize(
    "error", [TypeError("not a str"), OverflowError(), RuntimeError("panic"), SystemError()]
)
@pytest.mark.parametrize(
    "row", [Row("r", chat("w10", "w20"), source="a.jsonl:7"), Row("r", text="w5", source="a.jsonl:7")]
)
def test_a_text_that_the_tokenizer_refuses_names_its_row(
    row: Row, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer()
    templater = Templater(tokenizer)
    templater.encode_row(row)

    def refuse(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(templater._renderer, "tokenizer", Refusing(tokenizer, refuse))
    with pytest.raises(DataError, match=r"a\.jsonl:7: the tokenizer refuses the text"):
        templater.encode_row(row)


class Refusing:
    """A tokenizer that refuses some texts."""

    def __init__(self, tokenizer: Any, refuse: Any) -> None:
        self._tokenizer, self._refuse = tokenizer, refuse

    def __call__(self, text: str, **options: Any) -> Any:
        return self._tokenizer(text, **options) if text == "a" else self._refuse()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def test_already_templated_text_is_not_given_a_second_start_token() -> None:
    tokenizer = tiny_tokenizer()
    rendered = Templater(tokenizer).prompt_text(chat("w10"))
    assert rendered.startswith("<s>")
    with pytest.raises(DataError, match=r"a\.jsonl:7: .*two start tokens"):
        encode(Templater(tokenizer, template_text="<s>" + TEMPLATE), "w10", "w20")


def test_a_template_flag_reaches_prompts_and_training_rows_alike() -> None:
    template = "{{ bos_token }}{% if flag %}w99 {% endif %}" + TEMPLATE.removeprefix("{{ bos_token }}")
    on = Templater(tiny_tokenizer(), template_text=template, template_kwargs={"flag": True})
    off = Templater(tiny_tokenizer(), template_text=template)
    for templater, seen in ((on, True), (off, False)):
        (example,) = encode(templater, "w10", "w20")
        assert (99 in example.input_ids) is (99 in templater.prompt_ids(chat("w10"))) is seen
    assert on.fingerprint != off.fingerprint


@pytest.mark.parametrize("name", ["flga", "add_generation_prompt", "tools"])
def test_a_flag_that_would_change_nothing_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=rf"data\.template\.kwargs\.{name}"):
        Templater(tiny_tokenizer(), template_kwargs={name: True})


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        (chat("w10"), "needs an assistant turn at its end; its last turn is by the user"),
        (chat("w10", "w20", "w12"), "needs an assistant turn"),
        ((*chat("w10", "w20"), {"role": "tool", "content": "w5"}), "its last turn is by the tool"),
        ((), "the conversation is empty"),
        (({"role": "system", "content": "w5"},), "a system prompt only"),
        ((*chat("w10", "w20"), {"role": "assistant", "content": "w21"}), "two assistant turns"),
    ],
)
def test_rows_without_an_answer_are_named(messages: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:7: .*{complaint}"):
        Templater(tiny_tokenizer()).encode_row(Row("r", messages, source="a.jsonl:7"))


def test_a_prompt_must_ask_something() -> None:
    with pytest.raises(DataError, match="ends with the assistant's own turn"):
        Templater(tiny_tokenizer()).prompt_ids(chat("w10", "w20"))
    with pytest.raises(DataError, match="empty"):
        Templater(tiny_tokenizer()).prompt_ids(())


def test_without_a_template_conversations_are_refused_and_text_is_not() -> None:
    templater = Templater(tiny_tokenizer(template=None))
    assert not templater.has_template
    with pytest.raises(DataError, match=r"a\.jsonl:7: .*no chat template.*data\.template\.file"):
        encode(templater, "w10", "w20")
    (example,) = templater.encode_row(Row("t", text="w10 w20"))
    assert scored(example) == [20, EOS]


def test_plain_text_gets_one_start_token_if_the_tokenizer_adds_one() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    for text in ("w10 w20", "<s>w10 w20"):
        (example,) = Templater(tokenizer).encode_row(Row("t", text=text))
        assert example.input_ids == (BOS, 10, 20, EOS)
        assert example.scored == (False, True, True, True)


def test_a_generated_answer_keeps_its_writer() -> None:
    example = Templater(tiny_tokenizer()).generated("r", [1, 10, HEADER], [20], "student", end=False)
    assert (example.input_ids, example.scored, example.origin) == (
        (1, 10, HEADER, 20),
        (False, False, False, True),
        "student",
    )
