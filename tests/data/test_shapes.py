"""The shapes in which people write a row, and their mistakes."""

from __future__ import annotations

import json
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
        {"instruction": "q", "context": "", "response": "a", "category": "closed_qa"},
        {"instruction": "q", "response": "a"},
        {"prompt": "q", "output": "a"},
        {"prompt": "q", "answer": "a", "history": []},
        {"question": "q", "answer": "a"},
        {"question": "q", "answers": {"text": ["a", "a"], "answer_start": [1, 9]}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, chat("q", "a")[1]]},
    ],
)
def test_all_shapes_mean_the_same_conversation(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row)[0].messages == chat("q", "a")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "x", "output": "a"},
        {"instruction": "q", "context": "x", "response": "a", "category": "closed_qa"},
        {"question": "q", "context": "x", "answer": "a"},
        {"question": "q", "context": "x", "answers": {"text": ["a"], "answer_start": [0]}},
        {"prompt": "q", "input": "x", "output": "a"},
    ],
)
def test_a_passage_follows_its_question(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read(tmp_path, row)[0].messages == chat("q\n\nx", "a")


@pytest.mark.parametrize("history", [[["h", "i"]], list(chat("h", "i")), '[["h", "i"]]'])
@pytest.mark.parametrize("name", ["prompt", "instruction", "question"])
def test_earlier_turns_come_first(tmp_path: Path, name: str, history: Any) -> None:
    row = {name: "q", "history": history, "response": "a", "system_prompt": "s"}
    assert read(tmp_path, row)[0].messages == chat("h", "i", "q", "a", system="s")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "q", "response": "a", "output": "b"}, "both a response and a output"),
        ({"instruction": "q", "input": "x", "context": "y"}, "both a input and a context"),
        ({"prompt": "q", "history": ["h"]}, r"history\[0\] is neither a message nor a pair"),
        ({"prompt": list(chat("q")), "context": "x"}, "'context' stands beside a list of messages"),
        ({"question": "q", "answers": {"text": ["a", "b"]}}, "'answers' holds not exactly one answer"),
        (
            {"prompt": "q", "tools": [{"name": "f"}], "functions": [{"name": "g"}]},
            "both a tools and a functions",
        ),
    ],
)
def test_columns_that_contradict_each_other_are_refused(
    tmp_path: Path, row: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{complaint}"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("gold_answer", "an answer"),
        ("modelResponse", "an answer"),
        ("target", "an answer"),
        ("generated_text", "an answer"),
        ("ground_truth", "an answer"),
        ("reasoning", "an answer"),
        ("response_2", "an answer"),
        ("supporting-passages", "a context"),
        ("documents", "a context"),
        ("image", "a picture or sound"),
        ("input_audio", "a picture or sound"),
        ("rejected", "a judgement"),
        ("score_chosen", "a judgement"),
        ("Label", "a judgement"),
        ("loss_mask", "a judgement"),
        ("weight", "a judgement"),
    ],
)
@pytest.mark.parametrize("row", [{"prompt": "q", "response": "a"}, {"text": "t"}])
def test_an_unread_column_whose_name_matters_is_refused_and_can_be_left_out(
    tmp_path: Path, row: dict[str, Any], name: str, meaning: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl:2: the column '{name}' is not read, .* holds {meaning}"):
        read(tmp_path, row, {**row, "id": 2, name: "x"}, on_bad_row="skip")
    assert read(tmp_path, row, {**row, "id": 2, name: None}) != ()
    assert read(tmp_path, {**row, name: "x"}, columns={name: "unused"})[0].id == read(tmp_path, row)[0].id
    assert read(tmp_path, {**row, name: 1}, used=[name])[0].extra == {name: 1}


@pytest.mark.parametrize(
    "name", ["url", "prompt_id", "input_ids", "family", "unseen", "answer_start", "model"]
)
def test_any_other_unread_column_is_noted(tmp_path: Path, name: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "q"}, {"prompt": "r", name: "x"})
    noted = "" if name in ("family", "unseen") else f"; not read: {name}"
    assert read_rows([path]).shape == f"prompt: prompt{noted}"


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
    rows = [{"ask": "q", "said": "a"}]
    with pytest.raises(DataError, match=r"ask, said are of no known format.*data\.columns"):
        read(tmp_path, *rows)
    named = read(tmp_path, *rows, columns={"ask": "prompt", "said": "response"})
    assert named[0].messages == chat("q", "a")


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        (
            {"id": "1", "promt": "q", "reponse": "a"},
            "data.columns, for example {promt: prompt, reponse: response}.",
        ),
        ({"ask": "q"}, "data.columns, for example {question: prompt, answer: response}."),
        ({"prompt;response": "q;a"}, "separated by ';': save them with commas between, or tabs as .tsv."),
    ],
)
def test_columns_near_to_those_of_a_format_are_named_with_them(tmp_path: Path, row: Any, fix: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row)
    assert str(caught.value).endswith(fix)


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


def test_nulls_that_a_file_holds_stay(tmp_path: Path) -> None:
    call = {
        "type": "function",
        "function": {"name": "f", "arguments": {"city": "P", "unit": None, "of": [None]}},
    }
    tool = {"name": "f", "parameters": {"properties": {"unit": {"default": None}}}}
    turns = [*chat("q"), {"role": "assistant", "content": None, "tool_calls": [call], "name": None}]
    (row,) = read(tmp_path, {"messages": turns, "tools": [tool]})
    assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert row.tools == (tool,)
    text = json.dumps(turns)
    pq.write_table(
        pa.Table.from_pylist([{"messages": text, "tools": json.dumps([tool])}]), tmp_path / "a.parquet"
    )
    (stored,) = read_rows([str(tmp_path / "a.parquet")]).rows
    assert (stored.messages, stored.tools) == (row.messages, row.tools)


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
    with pytest.raises(DataError, match="'prompt' is a number, not text or a list of messages"):
        read(tmp_path, {"prompt": 4})
    with pytest.raises(DataError, match=r"conversations\[0\] is from 'bot'"):
        read(tmp_path, {"conversations": [{"from": "bot", "value": "q"}]})
