"""The shapes in which people write a row, and their mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.chats import chat, write_lines
from potstill.data.rows import Row, read_rows
from potstill.errors import DataError


def read(tmp_path: Path, *rows: Any, **options: Any) -> tuple[Row, ...]:
    return read_rows([write_lines(tmp_path / "a.jsonl", *rows)], **options).rows


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        {"prompt": [{"role": "user", "content": "q"}], "response": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]'},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_all_shapes_mean_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row)[0].messages == chat("q", "a")


def test_alpaca_input_follows_the_instruction(tmp_path: Path) -> None:
    assert read(tmp_path, {"instruction": "q", "input": "x", "output": "a"})[0].messages == chat(
        "q\n\nx", "a"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": None},
        {"prompt": "q"},
        {"messages": [{"role": "user", "content": "q"}]},
        {"instruction": "q", "output": None},
    ],
)
def test_prompt_only_rows_are_rows(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row)[0].prompt == read(tmp_path, row)[0].messages == chat("q")


def test_plain_text_is_a_row_without_messages(tmp_path: Path) -> None:
    row = read(tmp_path, {"text": "once", "url": "u"})[0]
    assert (row.text, row.messages, row.extra) == ("once", (), {"url": "u"})


def test_a_system_column_opens_the_conversation_once(tmp_path: Path) -> None:
    assert read(tmp_path, {"system": "s", "prompt": "q"})[0].messages == chat("q", system="s")
    own = {"messages": list(chat("q", system="mine")), "system": "s"}
    assert read(tmp_path, own)[0].messages == chat("q", system="mine")
    assert read(tmp_path, {"system": " ", "prompt": "q"})[0].messages == chat("q")


def test_the_richer_shape_wins_and_can_be_overruled(tmp_path: Path) -> None:
    row = {"messages": list(chat("q", "a")), "text": "rendered"}
    assert read(tmp_path, row)[0].text is None
    assert read(tmp_path, row, format="text")[0].text == "rendered"


def test_the_shape_is_printable_and_counts_the_answers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "q", "response": "a"}, {"prompt": "r"})
    assert read_rows([path]).shape == "prompt: prompt + response (in 1 of 2)"


def test_a_row_of_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:3: the column 'prompt' is missing or null"):
        read(tmp_path, {"prompt": "q"}, {"prompt": "r"}, {"text": "t"})


def test_unknown_columns_are_listed_with_the_way_to_name_them(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a"}]
    with pytest.raises(DataError, match=r"question, answer are of no known format.*data\.columns"):
        read(tmp_path, *rows)
    named = read(tmp_path, *rows, columns={"question": "prompt", "answer": "response"})
    assert named[0].messages == chat("q", "a")


def test_a_misspelt_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row has the column 'qestion'; did you mean 'question'"):
        read(tmp_path, {"question": "q"}, columns={"qestion": "prompt"})
    with pytest.raises(DataError, match="'promt' is no column that potstill reads"):
        read(tmp_path, {"question": "q"}, columns={"question": "promt"})


def test_nulls_that_a_table_adds_do_not_reach_the_template(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    rows = [
        {"messages": [{"role": "user", "content": "q", "tool_calls": None}]},
        {"messages": [{"role": "user", "content": "r"}, {"role": "assistant", "tool_calls": [call]}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read_rows([str(tmp_path / "a.parquet")]).rows
    assert first.messages == chat("q")
    assert second.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}],
    }


def test_arguments_written_as_json_text_become_an_object(tmp_path: Path) -> None:
    def row(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [*chat("q"), {"role": "assistant", "content": None, "tool_calls": [call]}]}

    assert read(tmp_path, row('{"x": 1}'))[0].messages == read(tmp_path, row({"x": 1}))[0].messages
    with pytest.raises(DataError, match=r"tool_calls\[0\] has arguments that are not JSON"):
        read(tmp_path, row("{x}"))


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "empty list"),
        ("hi", "is text, not a list"),
        ([{"role": "system", "content": "s"}], "a system prompt only"),
        ([*chat("q", "a"), {"role": "assistant", "content": "b"}], "two assistant turns stand in a row"),
        ([{"role": "assistant", "content": "a"}], "starts with an assistant turn"),
        ([{"role": "human", "content": "a"}], "has the role 'human'"),
        ([{"role": "user"}], "has no content"),
        ([{"role": "user", "content": 3}], "content is a number, not text"),
        (["q"], r"messages\[0\] is text, not an object"),
    ],
)
def test_conversations_out_of_order_are_named(tmp_path: Path, messages: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{complaint}"):
        read(tmp_path, {"messages": messages})


def test_both_a_response_and_a_completion_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both a response and a completion"):
        read(tmp_path, {"prompt": "q", "response": "a", "completion": "b"})


def test_numbers_where_text_belongs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'prompt' is a number, not a list"):
        read(tmp_path, {"prompt": 4})
    with pytest.raises(DataError, match=r"conversations\[0\] is from 'bot'"):
        read(tmp_path, {"conversations": [{"from": "bot", "value": "q"}]})
