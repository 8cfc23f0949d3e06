"""Which ids are scored: every answer with the one token that ends it, behind the prompt that it is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import chats
from builders.chats import bytes_tokenizer, chat
from builders.reading import encode, scored, spoken
from builders.tiny import EOS, HEADER, tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater


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
    ("before", "after"),
    [
        ("{% generation %}", ""),  # as SmolLM3's
        ("", "<think>\n\n</think>\n\n{% generation %}"),
    ],
    ids=["the header", "no empty thoughts"],
)
def test_an_answer_begins_where_its_prompt_ends_wherever_its_marker_does(before: str, after: str) -> None:
    """What a student writes to is then what it is asked with later."""
    templates = [
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        f"{opens}<|im_start|>assistant\n{within}{{{{ m.content }}}}<|im_end|>\n{closes}"
        "{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        for opens, within, closes in (
            (before, after, "{% endgeneration %}"),
            ("", after.replace("{% generation %}", ""), ""),
        )
    ]
    marked, bare = (Templater(bytes_tokenizer(template)) for template in templates)
    turns = ("a", "yes", "b", "the answer")
    assert encode(marked, *turns) == encode(bare, *turns)
    (example,) = encode(marked, *turns)
    assert list(example.prompt) == marked.prompt_ids(chat(*turns[:-1]))


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


def test_markers_and_prefixes_agree() -> None:
    marked, proven = (Templater(bytes_tokenizer(t)) for t in (chats.MARKED, chats.CHATML))
    turns = ("Hello there!", "the answer is", "no?\n\n", "yes, and 1 2 3")
    assert encode(marked, *turns) == encode(proven, *turns)


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
