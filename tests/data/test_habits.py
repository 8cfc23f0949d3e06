"""Templates with the habits of real families, and a tokenizer whose merges reach across joins."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.chats import (
    CHATML,
    FORGETFUL,
    JOINED,
    MARKED,
    NO_HEADER_FLAG,
    PLAIN_WORDS,
    PREFILLED,
    STRICT,
    TOOLS,
    bytes_tokenizer,
    chat,
)
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.types import Example

TOKENIZER = bytes_tokenizer()


def make(template: str, **changes) -> Templater:
    return Templater(bytes_tokenizer(template), **changes)


def scored(example: Example) -> str:
    ids = [t for t, s in zip(example.input_ids, example.scored, strict=True) if s]
    return TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", [CHATML, MARKED, STRICT, JOINED])
def test_every_habit_scores_the_answers_with_their_end_and_nothing_else(template):
    examples = make(template).encode_row(
        Row("r", chat("Hello?", "Yes, and no.", "What?", "1 2 3"), source="f:1")
    )
    told = [scored(example) for example in examples]
    end = "</s>" if template in (STRICT, JOINED) else "<|im_end|>"
    joined = "".join(told).replace(" ", "")
    assert joined == f"Yes,andno.{end}123{end}"


def test_a_prompt_is_always_a_prefix_of_its_training_row():
    for template in (CHATML, MARKED, STRICT, JOINED, PREFILLED, PLAIN_WORDS):
        t = make(template)
        messages = chat(
            "Hello there!", "<think>\nabout it\n</think>\n\nyes" if template == PREFILLED else "yes"
        )
        (example,) = t.encode_row(Row("r", messages, source="f:1"))
        prompt = t.prompt_ids(messages[:1])
        assert list(example.input_ids[: len(prompt)]) == prompt
        assert example.scored.index(True) == len(prompt)


def test_reasoning_that_a_template_would_drop_survives_render_and_tokens():
    thought = "<think>\nabout it\n</think>\n\nyes"
    for template in (FORGETFUL, PREFILLED):
        examples = make(template).encode_row(Row("r", chat("Hello?", thought), source="f:1"))
        text = TOKENIZER.decode(
            list(examples[-1].input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        assert "about it" in text
        assert "yes" in scored(examples[-1])


def test_tokens_that_the_prompt_supplies_are_not_scored():
    (example,) = make(PREFILLED).encode_row(
        Row("r", chat("Hello?", "<think>\nabout it\n</think>\n\nyes"), source="f:1")
    )
    assert not scored(example).startswith("<think>")


def test_reasoning_in_its_own_field_follows_the_policy():
    messages = (chat("Hello?")[0], {"role": "assistant", "content": "4", "reasoning_content": "2 2"})
    kept = make(CHATML).encode_row(Row("r", messages, source="f:1"))[0]
    stripped = make(CHATML, reasoning="strip").encode_row(Row("r", messages, source="f:1"))[0]
    assert "2 2" in scored(kept)
    assert scored(stripped) == "4<|im_end|>"


def test_earlier_turns_that_a_template_rewrites_become_one_example_a_turn():
    messages = chat("Hello?", "<think>\nabout it\n</think>\n\nyes", "What?", "<think>\n1 2\n</think>\n\nno")
    examples = make(FORGETFUL).encode_row(Row("r", messages, source="f:1"))
    assert [e.id for e in examples] == ["r#1", "r#2"]


def test_tools_reach_the_template_calls_are_scored_and_results_never():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = (
        {"role": "user", "content": "1 and 2?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "the answer is 3"},
    )
    tools = ({"type": "function", "function": {"name": "add", "parameters": {}}},)
    examples = make(TOOLS).encode_row(Row("r", messages, tools=tools, source="f:1"))
    whole = TOKENIZER.decode(
        list(examples[-1].input_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    told = "".join(scored(example) for example in examples)
    assert '"add"' in whole.replace(" ", "")
    assert "<call>" in told
    assert "the answer is 3" in told
    assert "tool\n3" not in told


def test_a_template_without_a_generation_flag_is_refused_or_scored_right():
    try:
        (example,) = make(NO_HEADER_FLAG).encode_row(Row("r", chat("Hello?", "yes"), source="f:1"))
    except DataError as error:
        assert "template" in str(error)
    else:
        assert scored(example).endswith("yes<|im_end|>")


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30), st.data()
)
def test_joined_ids_equal_their_parts_wherever_the_text_is_split(text, data):
    t = make(CHATML)
    prompt = t.prompt_ids(chat("Hello there! What?"))
    answer = TOKENIZER(text, add_special_tokens=False).input_ids
    cut = data.draw(st.integers(0, len(answer)))
    whole = t.append([*prompt, *answer[:cut]], answer[cut:])
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) : len(prompt) + len(answer)] == answer
