"""What a row holds reaches the text that a template makes of it, or the row is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from builders import chats, places
from builders.chats import bytes_tokenizer, chat
from builders.cli import potstill
from builders.reading import spoken
from potstill.data.examples import encode
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError

CALL = {"type": "function", "function": {"name": "area", "arguments": {"side": 5, "unit": "m"}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "area",
        "description": "Area of a square",
        "parameters": {"type": "object", "properties": {"side": {"type": "integer"}}, "required": ["side"]},
    },
}
TALK: tuple[dict[str, Any], ...] = (
    {"role": "user", "content": "What is its area?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "25"},
    {"role": "assistant", "content": "25."},
)


def only(condition: str) -> str:
    """ChatML that leaves out every turn without this condition."""
    start, end = "<|im_start|>{{ m.role }}", "<|im_end|>\n{% endfor"
    return chats.CHATML.replace(start, f"{{% if {condition} %}}{start}").replace(
        end, "<|im_end|>\n{% endif %}{% endfor"
    )


CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}"
TURNS = chats.CHATML.replace("{{ m.content }}", "{{ m.content }}" + CALLS)


def encoded(template: str, messages: Any = TALK, tools: Any = (), **options: Any) -> list[str]:
    tokenizer = bytes_tokenizer(template)
    row = Row("r", tuple(messages), tools=tuple(tools), source="a.jsonl:7")
    return spoken(tokenizer, *Templater(tokenizer, **options).encode_row(row))


@pytest.mark.parametrize(
    ("template", "tools", "part"),
    [
        (chats.CHATML, (), "the name of a tool call, an argument's name, an argument's value"),
        (TURNS.replace("{{ c.function.name }}", ""), (), "the name of a tool call"),
        (TURNS.replace("c.function.arguments | tojson", "c.function.arguments | list"), (), "an argument's value"),
        (TURNS.replace("%}<|im", "if m.role != 'tool' %}<|im", 1), (), "a tool's result"),
        (TURNS, (TOOL,), "a tool's name, a tool's description, a tool's parameter"),
        ("{% for t in tools or [] %}{{ t.function.name }}{% endfor %}" + TURNS, (TOOL,), "a tool's description"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_is_refused_by_name(template: str, tools: Any, part: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:7: the chat template prints nothing of {part}"):
        encoded(template, tools=tools)
    prompt = Templater(bytes_tokenizer(template))
    with pytest.raises(DataError, match=f"prints nothing of {part}"):
        prompt.prompt_ids(TALK[:-1], tools)


def test_what_a_template_prints_is_scored() -> None:
    assert encoded("{{ tools | tojson }}" + TURNS, tools=[TOOL]) == [
        '<call>area {"side": 5, "unit": "m"}<|im_end|>25.<|im_end|>'
    ]


@pytest.mark.parametrize(
    ("template", "messages", "part"),
    [
        (
            only("m.role != 'user' or loop.index > 1"),
            chat("a", "yes", "a", "no"),
            "a user's turn",
        ),
        (
            only("m.role != 'assistant' or loop.last"),
            chat("a", "a", "a", "a"),
            "an answer",
        ),
        (
            TURNS.replace("{{ m.content }}", "{% if not m.tool_calls %}{{ m.content }}{% endif %}"),
            (TALK[0], {**TALK[1], "content": "area"}, *TALK[2:]),
            "the words beside a tool call",
        ),
    ],
)
def test_a_part_counts_in_its_own_turn_alone(template: str, messages: Any, part: str) -> None:
    """The same words elsewhere in the conversation do not make up for what is left out."""
    with pytest.raises(DataError, match=f"prints nothing of {part}"):
        Templater(bytes_tokenizer(template)).prompt_ids(messages[:-1])


ENDS = "{{ m.content.split('</think>')[-1] }}"


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize(
    ("question", "thought", "said"),
    [("What is 2+2?", "2+2", "4"), ("What?", "4", "4"), ("What?", "4", "is 4, 4"), ("4?", "is 4", "is 4")],
)
def test_reasoning_is_kept_wherever_else_its_words_stand(
    question: str, thought: str, said: str, marks: bool
) -> None:
    template = (chats.MARKED if marks else chats.CHATML).replace("{{ m.content }}", ENDS)
    answer = f"<think>{thought}</think>{said}"
    assert encoded(template, chat(question, answer)) == [answer + "<|im_end|>"]


def test_reasoning_before_a_tool_call_that_is_not_printed_is_refused() -> None:
    called = {**TALK[1], "content": "<think>area</think>"}
    with pytest.raises(DataError, match=r"a\.jsonl:7: .*nothing of the reasoning before a tool call"):
        encoded(TURNS.replace("{{ m.content }}", ENDS), (TALK[0], called, *TALK[2:]))


def test_the_teachers_template_is_held_to_the_same() -> None:
    row = Row("r", TALK, source="a.jsonl:7")
    student, teacher = Templater(bytes_tokenizer(TURNS)), Templater(bytes_tokenizer(chats.CHATML))
    with pytest.raises(DataError, match=r"a\.jsonl:7: as the teacher reads it, .*prints nothing of the name"):
        encode([row], student, max_length=None, teacher=teacher)
    assert encode([row], student, max_length=None, teacher=student).examples


@pytest.mark.parametrize("printed", ["'' + c.function.arguments", "c.function.arguments"])
def test_a_template_that_wants_arguments_as_text_is_given_json(printed: str) -> None:
    """Another library's TypeError, or Python's way to write an object, must not be what is learnt."""
    template = TURNS.replace("c.function.arguments | tojson", printed)
    assert encoded(template) == ['<call>area {"side": 5, "unit": "m"}<|im_end|>25.<|im_end|>']


def test_a_marked_template_that_wants_text_is_given_json_too() -> None:
    content = "{% generation %}{{ m.content }}" + CALLS.replace(
        "c.function.arguments | tojson", "'' + c.function.arguments"
    )
    template = chats.MARKED.replace("{% generation %}{{ m.content }}", content)
    assert encoded(template) == ['<call>area {"side": 5, "unit": "m"}<|im_end|>25.<|im_end|>']


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_tool_call_that_vanishes_ends_check_and_run(tmp_path, command):
    call = {"function": {"name": "w9", "arguments": {"w8": 5}}}
    turns = [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "w15"}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"w{20 + i}"},
                *turns,
                {"role": "assistant", "content": "w16"},
            ]
        }
        for i in range(24)
    ]
    places.write(tmp_path, rows)
    done = potstill(command, "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "rows.jsonl:" in done.stderr
    assert "prints nothing of the name of a tool call" in done.stderr
