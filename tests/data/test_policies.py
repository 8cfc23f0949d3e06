"""System prompts that a template refuses, and reasoning that templates lose."""

from __future__ import annotations

from typing import Any

import pytest

from builders import chats
from builders.chats import bytes_tokenizer, chat
from builders.reading import spoken
from builders.tiny import tiny_tokenizer
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.types import Example


def encode(templater: Templater, *messages: dict[str, Any]) -> list[Example]:
    return templater.encode_row(Row("r", messages, source="a.jsonl:7"))


def answers(templater: Templater, tokenizer: Any, *messages: dict[str, Any]) -> list[str]:
    return spoken(tokenizer, *encode(templater, *messages))


def answer(text: str, **fields: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def test_a_refused_system_role_points_to_merge() -> None:
    with pytest.raises(DataError, match=r"System role not supported.*system: merge"):
        Templater(bytes_tokenizer(chats.STRICT)).prompt_ids(chat("hi", system="be brief"))


def test_a_system_role_that_is_silently_left_out_points_to_merge() -> None:
    silent = chats.CHATML.replace("%}<|im_start|>", "if m.role != 'system' %}<|im_start|>", 1)
    with pytest.raises(DataError, match=r"prints nothing of the role system.*system: merge"):
        Templater(bytes_tokenizer(silent)).prompt_ids(chat("hi", system="be brief"))


def test_a_system_prompt_is_merged_or_dropped_by_policy() -> None:
    tokenizer = bytes_tokenizer(chats.STRICT)
    merge, drop = (Templater(tokenizer, system=policy) for policy in ("merge", "drop"))
    plain = Templater(tokenizer)
    asked = chat("hi", system="be brief")
    assert merge.prompt_ids(asked) == plain.prompt_ids(chat("be brief\n\nhi"))
    assert drop.prompt_ids(asked) == plain.prompt_ids(chat("hi"))
    assert answers(merge, tokenizer, *chat("hi", "yes", system="be brief")) == [" yes</s>"]


def test_turns_that_must_alternate_name_the_row() -> None:
    template = "{% if messages|length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    templater = Templater(bytes_tokenizer(template + chats.CHATML))
    with pytest.raises(DataError, match=r"a\.jsonl:7: .*roles must alternate"):
        templater.encode_row(Row("r", chat("a", "b", "c", "d"), source="a.jsonl:7"))


THOUGHT = answer("4", reasoning_content="2+2")
QUESTION = {"role": "user", "content": "what"}


@pytest.mark.parametrize(
    "message", [THOUGHT, answer("4", reasoning="2+2"), answer("<think>\n2+2\n</think>\n\n4")]
)
def test_reasoning_in_its_own_field_is_not_dropped(message: dict[str, Any]) -> None:
    tokenizer = bytes_tokenizer()
    keep, strip = (Templater(tokenizer, reasoning=policy) for policy in ("keep", "strip"))
    assert answers(keep, tokenizer, QUESTION, message) == ["<think>\n2+2\n</think>\n\n4<|im_end|>"]
    assert answers(strip, tokenizer, QUESTION, message) == ["4<|im_end|>"]


def test_reasoning_whose_opening_tag_stayed_in_the_prompt_gets_it_back() -> None:
    tokenizer = bytes_tokenizer()
    message = answer("2+2\n</think>\n\n4")
    assert answers(Templater(tokenizer), tokenizer, QUESTION, message) == [
        "<think>\n2+2\n</think>\n\n4<|im_end|>"
    ]
    assert answers(Templater(tokenizer, reasoning="strip"), tokenizer, QUESTION, message) == ["4<|im_end|>"]


def test_an_answer_that_is_nothing_but_reasoning_cannot_be_stripped() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:7: .*nothing but reasoning"):
        encode(Templater(bytes_tokenizer(), reasoning="strip"), QUESTION, answer("<think>2+2</think>"))


def test_separate_reasoning_that_the_template_does_not_print_is_put_back() -> None:
    tokenizer = bytes_tokenizer()
    separate = Templater(tokenizer, reasoning="separate")
    assert answers(separate, tokenizer, QUESTION, THOUGHT) == ["<think>\n2+2\n</think>\n\n4<|im_end|>"]


def test_reasoning_is_put_back_although_its_words_stand_elsewhere_in_the_conversation() -> None:
    """What the template left out was once taken for printed, because the question held the same words."""
    tokenizer = bytes_tokenizer()
    separate = Templater(tokenizer, reasoning="separate")
    question = {"role": "user", "content": "what is 2+2"}
    messages = (question, answer("5"), question, THOUGHT)
    assert answers(separate, tokenizer, *messages) == ["5<|im_end|><think>\n2+2\n</think>\n\n4<|im_end|>"]


@pytest.mark.parametrize("policy", ["keep", "separate"])
@pytest.mark.parametrize("thought", [THOUGHT, answer("<think>\n2+2\n</think>\n\n4")])
def test_a_template_that_forgets_earlier_reasoning_gives_one_example_a_turn(
    policy: Any, thought: dict[str, Any]
) -> None:
    tokenizer = bytes_tokenizer(chats.FORGETFUL)
    messages = (QUESTION, thought, QUESTION, answer("5", reasoning_content="2+3"))
    templater = Templater(tokenizer, reasoning=policy)
    assert answers(templater, tokenizer, *messages) == [
        "<think>\n2+2\n</think>\n\n4<|im_end|>",
        "<think>\n2+3\n</think>\n\n5<|im_end|>",
    ]
    first, second = templater.encode_row(Row("r", messages))
    assert [first.id, second.id] == ["r#1", "r#2"]
    assert "2+2" not in tokenizer.decode(second.input_ids), "history is what inference would show"


def test_a_prompt_that_opens_the_block_is_not_scored_and_the_reasoning_survives() -> None:
    tokenizer = bytes_tokenizer(chats.PREFILLED)
    templater = Templater(tokenizer)
    for message in (THOUGHT, answer("<think>\n2+2\n</think>\n\n4"), answer("2+2\n</think>\n\n4")):
        assert answers(templater, tokenizer, QUESTION, message) == ["2+2\n</think>\n\n4<|im_end|>"]
    (example,) = templater.encode_row(Row("r", (QUESTION, THOUGHT)))
    prompt = templater.prompt_ids((QUESTION,))
    assert tokenizer.decode(prompt).endswith("<think>\n")
    assert list(example.input_ids[: len(prompt)]) == prompt
    assert tokenizer.decode(example.input_ids).count("<think>") == 1


def test_an_answer_without_reasoning_after_an_open_block_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:7: the prompt opens <think>.*template\.kwargs"):
        encode(Templater(bytes_tokenizer(chats.PREFILLED)), QUESTION, answer("4"))


@pytest.mark.parametrize("template", [chats.CHATML, chats.MARKED])
@pytest.mark.parametrize("message", [THOUGHT, answer("<think>2+2</think>4"), answer("2+2</think>4")])
def test_reasoning_after_a_closed_block_is_refused(template: str, message: dict[str, Any]) -> None:
    """A prompt that says "no thinking" before a row with reasoning once gave two blocks."""
    tokenizer = bytes_tokenizer(
        template.replace("assistant\n{%", "assistant\n{% if not on %}<think>\n\n</think>\n\n{% endif %}{%")
    )
    with pytest.raises(
        DataError, match=r"a\.jsonl:7: the prompt holds a closed <think> block.*reasoning: strip"
    ):
        encode(Templater(tokenizer), QUESTION, message)
    assert answers(Templater(tokenizer, reasoning="strip"), tokenizer, QUESTION, message) == ["4<|im_end|>"]
    thinking = Templater(tokenizer, template_kwargs={"on": True})
    (said,) = answers(thinking, tokenizer, QUESTION, message)
    assert (said.count("<think>"), said.count("</think>")) == (1, 1)


def test_a_template_that_rewrites_the_answer_is_bypassed() -> None:
    tokenizer = bytes_tokenizer(chats.CHATML.replace("m.content", "m.content | replace('yes', 'no')"))
    assert answers(Templater(tokenizer), tokenizer, QUESTION, answer("yes")) == ["yes<|im_end|>"]


def test_fingerprints_differ_between_policies() -> None:
    prints = {
        Templater(tiny_tokenizer(), system=system, reasoning=reasoning).fingerprint
        for system in ("keep", "merge", "drop")
        for reasoning in ("keep", "strip", "separate")
    }
    assert len(prints) == 9
    assert Templater(tiny_tokenizer()).fingerprint in prints


def test_a_system_prompt_that_the_template_adds_is_reported() -> None:
    adds = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    assert Templater(bytes_tokenizer(adds + chats.CHATML)).default_system == "Be kind."
    for template in (chats.CHATML, chats.STRICT, chats.JOINED, None):
        assert Templater(bytes_tokenizer(template)).default_system == ""
