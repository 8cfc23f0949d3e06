"""Dialects of turns: what is unambiguous is read, the rest refused by name; marks of training are honoured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders import chats
from builders.chats import bytes_tokenizer, chat, write_lines
from builders.reading import spoken
from potstill.data.rows import Row, read_rows
from potstill.data.template import Templater
from potstill.errors import DataError

CALL = {"name": "f", "arguments": {"x": 1, "y": None}}
READ = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
TALK = (chat("q")[0], READ, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "a"})


def read(tmp_path: Path, **row: Any) -> Row:
    return read_rows([write_lines(tmp_path / "a.jsonl", row)]).rows[0]


@pytest.mark.parametrize(
    "call",
    [
        READ,
        {
            "role": "assistant",
            "content": None,
            "function_call": {**CALL, "arguments": json.dumps(CALL["arguments"])},
        },
        {"role": "assistant", "content": "", "function_call": CALL, "tool_calls": []},
        {"role": "tool_call", "content": json.dumps(CALL)},
        {"role": "tool_call", "content": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": [], "tool_calls": [CALL]},
    ],
)
@pytest.mark.parametrize("result", ["tool", "tool_response", "function"])
def test_tool_calls_of_all_dialects_mean_the_same(tmp_path: Path, call: dict[str, Any], result: str) -> None:
    turns = [TALK[0], call, {"role": result, "content": [{"type": "text", "text": "3"}]}, TALK[3]]
    assert read(tmp_path, messages=turns).messages == TALK


@pytest.mark.parametrize("caller", ["function_call", "tool_call"])
@pytest.mark.parametrize("result", ["observation", "tool_response", "function_response", "tool"])
def test_speakers_that_call_a_tool_are_read(tmp_path: Path, caller: str, result: str) -> None:
    said = [("human", "q"), (caller, json.dumps(CALL)), (result, "3"), ("gpt", "a")]
    row = read(
        tmp_path,
        conversations=[{"from": who, "value": what} for who, what in said],
        functions=[{"name": "f"}],
    )
    assert (row.messages, row.tools) == (TALK, ({"name": "f"},))


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ({"role": "tool_call", "content": "f(x)"}, "is a tool call that is not JSON"),
        ({"role": "tool_call", "content": "3"}, r"tool_calls\[0\] is a number, not an object"),
        ({"role": "assistant", "function_call": "auto", "content": ""}, r"function_call\[0\] is text"),
        ({"role": "assistant", "content": "", "function_call": {"arguments": {}}}, "has no name"),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": "f"}]}, "is text, not an object"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": [1]}]},
            "arguments is a list",
        ),
        ({**READ, "function_call": CALL}, "has both tool_calls and function_call"),
        ({**READ, "role": "user"}, "calls a tool, and its role is user"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"content\[0\] is 'image_url'"),
        ({"role": "user", "content": ["x"]}, r"content\[0\] is text, and"),
        ({"role": "user", "content": "x", "images": ["a.png"]}, r"images holds more than text"),
        ({"role": "ipython", "content": "x"}, "has the role 'ipython'"),
    ],
)
def test_what_is_ambiguous_is_refused_by_name(tmp_path: Path, turn: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1: messages\[1\]\S* ?.*{complaint}|{complaint}"):
        read(tmp_path, messages=[TALK[0], turn, TALK[3]])


def marked(tmp_path: Path, template: str, *marks: dict[str, Any]) -> list[str]:
    turns = [dict(turn) for turn in chat("a", "bad", "b", "the answer")]
    for turn, mark in zip(turns[1::2], marks, strict=False):
        turn |= mark
    tokenizer = bytes_tokenizer(template)
    return spoken(tokenizer, *Templater(tokenizer).encode_row(read(tmp_path, messages=turns)))


@pytest.mark.parametrize("template", [chats.CHATML, chats.MARKED, chats.JOINED])
@pytest.mark.parametrize(
    "mark",
    [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"train": "false"}, {"masked": True}, {"mask": 1},
     {"train_on_turn": False}, {"trainable": 0}, {"learn": False}, {"ignore": True}, {"weight": 0, "train": False}],
)  # fmt: skip
def test_a_turn_that_is_marked_is_not_scored(tmp_path: Path, template: str, mark: dict[str, Any]) -> None:
    end = "</s>" if template == chats.JOINED else "<|im_end|>"
    assert marked(tmp_path, template, mark) == ["the answer" + end]
    assert marked(tmp_path, template, {}, mark)[0] == "bad" + end
    positive = {key: not value if not isinstance(value, str) else True for key, value in mark.items()}
    assert "bad" in marked(tmp_path, template, positive)[0]
    assert "".join(marked(tmp_path, template, mark, mark)) == ""


@pytest.mark.parametrize(
    ("mark", "complaint"),
    [
        ({"weight": 0.5}, "weight says which words are trained on in a way"),
        ({"mask": [0, 1]}, "mask says"),
        ({"loss": False}, "loss says"),
        ({"train_detail": [{"begin_offset": 0}]}, "train_detail says"),
        ({"loss_mask": 0}, "loss_mask says"),
        ({"skip_training": True}, "skip_training says"),
        ({"weight": 1, "train": False}, "weight and train disagree"),
    ],
)
def test_a_mark_that_is_not_understood_is_refused(
    tmp_path: Path, mark: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1: messages\[1\].*{complaint}"):
        marked(tmp_path, chats.CHATML, mark)


def test_marks_of_other_roles_are_fine_unless_they_ask_to_train(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "q", "train": False, "weight": 0},
        {"role": "assistant", "content": "a"},
    ]
    assert read(tmp_path, messages=turns).messages == chat("q", "a")
    with pytest.raises(DataError, match=r"messages\[0\]\.train asks to train on a turn of the user"):
        read(tmp_path, messages=[{**turns[0], "train": True, "weight": 1}, turns[1]])


def test_a_marked_answer_is_no_reference(tmp_path: Path) -> None:
    turns = [*chat("a", "bad", "b", "yes")]
    turns[1] = {**turns[1], "weight": 0}
    row = read(tmp_path, messages=turns)
    assert [turn["content"] for turn in row.asked] == ["a", "bad", "b"]
    assert [turn["content"] for turn in row.opening] == ["a"]
