"""What becomes of every part of a row: rendered or not, scored or not."""

from __future__ import annotations

from typing import Any

import pytest

from builders import chats
from builders.chats import bytes_tokenizer, chat
from builders.reading import spoken
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError

CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
ENDS = "{{ m.content.split('</think>')[-1] }}"
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + chats.CHATML.replace(
    "{{ m.content }}", "{{ m.content }}" + CALLS
)
LOST, SEEN, SCORED = (False, False), (True, False), (True, True)


def accounts(
    template: str, row: Row, *, asked: bool = False, **options: Any
) -> list[tuple[str, tuple[bool, bool]]]:
    templater = Templater(bytes_tokenizer(template), **options)
    found = templater.accounts(row, asked=asked)
    return [(f"{a.part.turn} {a.part.what}: {a.part.value}", (a.rendered, a.scored)) for a in found]


@pytest.mark.parametrize("template", [chats.CHATML, chats.MARKED, chats.JOINED, chats.PLAIN_WORDS])
def test_answers_are_scored_and_questions_rendered(template: str) -> None:
    """The same words in every turn are parts of their own."""
    assert accounts(template, Row("r", chat("yes", "yes", "yes", "yes"))) == [
        ("1 a user's turn: yes", SEEN), ("2 an answer: yes", SCORED),
        ("3 a user's turn: yes", SEEN), ("4 an answer: yes", SCORED),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "system"), [({}, SEEN), ({"system": "merge"}, SEEN), ({"system": "drop"}, LOST)]
)
def test_a_system_prompt_goes_where_the_recipe_sends_it(options: Any, system: Any) -> None:
    found = accounts(chats.CHATML, Row("r", chat("a", "yes", system="Be brief.")), **options)
    assert found[0] == ("1 a system prompt: Be brief.", system)


@pytest.mark.parametrize(
    ("template", "options", "reasoning"),
    [
        (chats.CHATML, {}, SCORED),
        (chats.CHATML.replace("{{ m.content }}", ENDS), {}, SCORED),
        (chats.CHATML, {"reasoning": "strip"}, LOST),
        (chats.CHATML, {"reasoning": "separate"}, SCORED),
    ],
)
def test_reasoning_goes_where_the_recipe_sends_it(template: str, options: Any, reasoning: Any) -> None:
    row = Row("r", chat("What is 2+2?", "<think>2+2</think>4"))
    found = accounts(template, row, **options)
    assert found[1:] == [("2 reasoning: 2+2", reasoning), ("2 an answer: 4", SCORED)]
    tokenizer = bytes_tokenizer(template)
    (said,) = spoken(tokenizer, *Templater(tokenizer, **options).encode_row(row))
    assert ("2+2" in said) is (reasoning == SCORED)


def test_reasoning_of_earlier_turns_that_a_template_drops_is_not_rendered_where_turns_are_one_row() -> None:
    template = chats.CHATML.replace(
        "{{ m.content }}", "{% if loop.last %}{{ m.content }}{% else %}" + ENDS + "{% endif %}"
    )
    row = Row("r", chat("a", "<think>hm</think>yes", "b", "no"))
    assert ("2 reasoning: hm", SCORED) in accounts(template, row), "each answer is a row of its own"
    messages = [dict(message) for message in row.messages]
    messages[1]["trained"] = False
    assert ("2 reasoning: hm", LOST) in accounts(template, Row("r", tuple(messages)))


def test_turns_that_are_not_trained_are_rendered_alone() -> None:
    first, last = ([dict(message) for message in chat("a", "yes", "b", "no")] for _ in range(2))
    first[1]["trained"] = last[3]["trained"] = False
    assert [fate for _, fate in accounts(chats.CHATML, Row("r", tuple(first)))] == [SEEN, SEEN, SEEN, SCORED]
    assert [fate for _, fate in accounts(chats.CHATML, Row("r", tuple(last)))] == [SEEN, SCORED, SEEN, SEEN]


def test_every_part_of_a_tool_call_is_accounted_for() -> None:
    call = {"function": {"name": "area", "arguments": {"side": 5, "unit": "m"}}}
    tool = {"name": "area", "description": "Area", "parameters": {"properties": {"side": {}}}}
    messages = (
        {"role": "user", "content": "Area?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "25"},
        {"role": "assistant", "content": "25."},
    )
    assert accounts(TOOLS, Row("r", messages, tools=(tool,))) == [
        ("1 a user's turn: Area?", SEEN),
        ("2 the name of a tool call: area", SCORED),
        ("2 an argument's name: side", SCORED), ("2 an argument's value: 5", SCORED),
        ("2 an argument's name: unit", SCORED), ("2 an argument's value: m", SCORED),
        ("3 a tool's result: 25", SEEN),
        ("4 an answer: 25.", SCORED),
        ("0 a tool's name: area", SEEN), ("0 a tool's description: Area", SEEN),
        ("0 a tool's parameter: side", SEEN),
    ]  # fmt: skip


def test_an_answer_that_the_teacher_is_to_write_is_not_rendered() -> None:
    row = Row("r", chat("a", "yes"))
    assert accounts(chats.CHATML, row, asked=True) == [
        ("1 a user's turn: a", SEEN),
        ("2 an answer: yes", LOST),
    ]
    assert accounts(chats.CHATML, Row("r", chat("a")), asked=True) == [("1 a user's turn: a", SEEN)]


def test_plain_text_is_scored_and_long_values_are_cut() -> None:
    ((said, fate),) = accounts(chats.CHATML, Row("r", text="yes \n no " * 1000))
    assert fate == SCORED
    assert said == ("1 a text: " + "yes no " * 9)[: len("1 a text: ") + 60]


@pytest.mark.parametrize(
    ("template", "messages", "asked", "reason"),
    [
        ("{{ raise_exception('no') }}", chat("a", "yes"), False, "refuses"),
        ("{{ raise_exception('no') }}", chat("a", "yes"), True, "refuses"),
        (chats.CHATML, chat("a"), False, "needs an assistant turn at its end"),
        (chats.CHATML, chat("a", "yes", "b"), False, "its last turn is by the user"),
        (chats.CHATML, (), False, "the conversation is empty"),
        (chats.CHATML, (), True, "the conversation is empty"),
        (chats.CHATML, ({"role": "system", "content": "b"},), True, "a system prompt only"),
    ],
)
def test_a_row_that_cannot_be_rendered_has_no_account(template, messages, asked, reason) -> None:
    with pytest.raises(DataError, match=reason):
        accounts(template, Row("r", tuple(messages)), asked=asked)
