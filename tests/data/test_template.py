"""Ids and targets: start tokens, end tokens, several turns, and templates that do it their own way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import chats
from builders.chats import bytes_tokenizer, chat
from builders.reading import scored, spoken
from builders.tiny import BOS, EOS, HEADER, TEMPLATE, tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.types import Example


def encode(templater: Templater, *turns: str, system: str | None = None) -> list[Example]:
    return templater.encode_row(Row("r", chat(*turns, system=system), source="a.jsonl:7"))


def test_one_start_token_and_the_end_token_is_learnt() -> None:
    (example,) = encode(Templater(tiny_tokenizer()), "w10", "w20 w21")
    assert example.input_ids == (1, 10, HEADER, 20, 21, 2)
    assert example.scored == (False,) * 3 + (True,) * 3


def test_an_answer_that_also_stands_in_the_prompt_is_scored_once() -> None:
    (example,) = encode(Templater(tiny_tokenizer()), "w20 w21 w10", "w20 w21")
    assert example.scored == (False,) * 5 + (True,) * 3


def test_two_turns_without_markers_score_both_answers_and_both_stops() -> None:
    (example,) = encode(Templater(tiny_tokenizer()), "w10", "w20 w21 w22", "w12", "w30 w31 w32 w33")
    assert scored(example) == [20, 21, 22, EOS, 30, 31, 32, 33, EOS]
    assert example.input_ids.count(HEADER) == 2


def test_a_one_token_answer_has_its_token_and_its_end() -> None:
    (example,) = encode(Templater(tiny_tokenizer()), "w10", "w20")
    assert scored(example) == [20, EOS]


def test_nothing_follows_the_last_stop_token() -> None:
    tokenizer = bytes_tokenizer()
    (example,) = encode(Templater(tokenizer), "hi", "the answer")
    assert spoken(tokenizer, example) == ["the answer<|im_end|>"]
    assert example.scored[-1]
    assert tokenizer.decode(example.input_ids).count("<|im_start|>assistant") == 1


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


@given(st.text(min_size=1, max_size=30), st.integers(0, 30))
def test_an_answer_survives_wherever_it_joins_its_prompt(text: str, cut: int) -> None:
    question, answer = text[:cut] or "?", text[cut:] or "!"
    tokenizer = bytes_tokenizer(chats.JOINED)
    templater = Templater(tokenizer)
    (example,) = encode(templater, question, answer)
    prompt = templater.prompt_ids(chat(question))
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert spoken(tokenizer, example) == [answer + "</s>"]
    assert example.scored == (False,) * len(prompt) + (True,) * (len(example.input_ids) - len(prompt))


def test_a_merge_across_the_join_does_not_move_the_mask() -> None:
    tokenizer = bytes_tokenizer(chats.JOINED)
    whole = tokenizer("user: a\nassistant: the", add_special_tokens=False)["input_ids"]
    prompt = Templater(tokenizer).prompt_ids(chat("a"))
    assert whole[: len(prompt)] != prompt, "the tokenizer must merge here for the test to mean anything"
    (example,) = encode(Templater(tokenizer), "a", "the answer")
    assert spoken(tokenizer, example) == ["the answer</s>"]


@pytest.mark.parametrize(
    ("template", "space", "end"),
    [
        (chats.CHATML, "", "<|im_end|>"),
        (chats.MARKED, "", "<|im_end|>"),
        (chats.STRICT, " ", "</s>"),
        (chats.JOINED, "", "</s>"),
    ],
)
def test_every_template_scores_the_answers_with_their_end_and_nothing_else(
    template: str, space: str, end: str
) -> None:
    tokenizer = bytes_tokenizer(template)
    examples = encode(Templater(tokenizer), "Hello?", "Yes, and no.", "What?", "1 2 3")
    said = "".join(spoken(tokenizer, *examples))
    assert said == f"{space}Yes, and no.{end}{space}1 2 3{end}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        *((t, "yes") for t in (chats.CHATML, chats.MARKED, chats.STRICT, chats.JOINED, chats.PLAIN_WORDS)),
        (chats.PREFILLED, "<think>\nabout it\n</think>\n\nyes"),
    ],
)
def test_a_prompt_is_a_prefix_of_its_training_row(template: str, said: str) -> None:
    templater = Templater(bytes_tokenizer(template))
    (example,) = encode(templater, "Hello there!", said)
    prompt = templater.prompt_ids(chat("Hello there!"))
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert example.scored.index(True) == len(prompt)


def test_turns_are_one_row_where_the_last_one_begins_with_the_others() -> None:
    """The last answer joins its prompt in one token of the whole text; the row keeps the prompt's ids."""
    tokenizer = bytes_tokenizer()
    templater = Templater(tokenizer)
    (example,) = encode(templater, "a", "yes", "b", "\n\n")
    prompt = templater.prompt_ids(chat("a", "yes", "b"))
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert spoken(tokenizer, example) == ["yes<|im_end|>\n\n<|im_end|>"]


def test_where_turns_cannot_be_one_row_each_answer_is_its_own() -> None:
    tokenizer = bytes_tokenizer(chats.JOINED)
    first, second = encode(Templater(tokenizer), "a", "the answer", "b", "yes")
    assert [first.id, second.id] == ["r#1", "r#2"]
    assert spoken(tokenizer, first, second) == ["the answer</s>", "yes</s>"]


def test_a_template_without_end_token_gets_the_tokenizers_own() -> None:
    tokenizer = bytes_tokenizer(chats.PLAIN_WORDS)
    templater = Templater(tokenizer)
    assert templater.stop_ids == (tokenizer.eos_token_id,)
    assert spoken(tokenizer, *encode(templater, "a", "yes", "b", "no")) == ["yes</s>", "no</s>"]


def test_the_templates_end_token_stops_before_the_tokenizers() -> None:
    tokenizer = bytes_tokenizer()
    stops = Templater(tokenizer).stop_ids
    assert tokenizer.convert_ids_to_tokens(list(stops)) == ["<|im_end|>", "</s>"]


def test_a_template_that_ignores_the_generation_prompt_does_not_score_its_header() -> None:
    tokenizer = bytes_tokenizer(chats.NO_HEADER_FLAG)
    templater = Templater(tokenizer)
    (example,) = encode(templater, "a", "yes", "b", "no")
    assert spoken(tokenizer, example) == ["yes<|im_end|>no<|im_end|>"]
    assert tokenizer.decode(templater.prompt_ids(chat("a"))).endswith("<|im_start|>assistant\n")


def test_markers_are_followed_and_completed_by_the_end_token() -> None:
    tokenizer = bytes_tokenizer(chats.MARKED)
    (example,) = encode(Templater(tokenizer), "a", "yes", "b", "the answer")
    assert spoken(tokenizer, example) == ["yes<|im_end|>the answer<|im_end|>"]
    assert example.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_markers_that_hold_the_end_token_do_not_score_what_follows_it() -> None:
    wide = chats.MARKED.replace("{% endgeneration %}", "<|im_end|>\n{% endgeneration %}").replace(
        "{% endif %}<|im_end|>\n{% endfor %}", "<|im_end|>\n{% endif %}{% endfor %}"
    )
    turns = ("a", "yes", "b", "the answer")
    assert encode(Templater(bytes_tokenizer(wide)), *turns) == encode(Templater(bytes_tokenizer()), *turns)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        *((t, end) for t in (chats.CHATML, chats.MARKED) for end in ("<|im_end|>", "<|im_end|>\n", "</s> <|im_end|>")),
        *((t, end) for t in (chats.JOINED, chats.PLAIN_WORDS, chats.STRICT, chats.CHATML) for end in ("</s>", "</s></s>\n")),
    ],
)  # fmt: skip
def test_every_answer_has_one_end_token(template: str, end: str) -> None:
    tokenizer = bytes_tokenizer(template)
    templater = Templater(tokenizer)
    plain = encode(templater, "a", "yes", "b", "no")
    assert encode(templater, "a", "yes" + end, "b", "no" + end) == plain
    stop = templater.stop_ids[0]
    assert sum(scored(example).count(stop) for example in plain) == 2


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


def test_markers_and_prefixes_agree() -> None:
    marked, proven = (Templater(bytes_tokenizer(t)) for t in (chats.MARKED, chats.CHATML))
    turns = ("Hello there!", "the answer is", "no?\n\n", "yes, and 1 2 3")
    assert encode(marked, *turns) == encode(proven, *turns)


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


def test_tool_calls_are_scored_and_tool_results_never() -> None:
    tokenizer = bytes_tokenizer(chats.TOOLS)
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = (
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "yes"},
    )
    (example,) = Templater(tokenizer).encode_row(Row("r", messages, tools=({"name": "f"},)))
    assert spoken(tokenizer, example) == ['<call>f {"x": 1}<|im_end|>yes<|im_end|>']
    assert '[{"name": "f"}]' in tokenizer.decode(example.input_ids)


def test_the_last_end_token_is_found_behind_an_end_token_in_the_text() -> None:
    tokenizer = bytes_tokenizer()
    (example,) = encode(Templater(tokenizer), "a", "say <|im_end|> to stop")
    assert spoken(tokenizer, example) == ["say <|im_end|> to stop<|im_end|>"]
