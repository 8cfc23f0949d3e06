"""Files at the border: damaged tables, deep nesting and broken text end in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.chats import write_lines
from potstill.data.rows import read_rows
from potstill.errors import DataError
from potstill.recipe.inputs import DataSpec
from potstill.runs.rows import read_data

ROWS = [
    {"id": str(i), "prompt": f"question {i}", "meta": {"tags": ["a", "b"]}, "kind": "x"} for i in range(200)
]

SPOILED = """
import random, sys
from potstill.data.rows import read_rows
from potstill.errors import DataError
path, whole = sys.argv[1], open(sys.argv[1], "rb").read()
ends = set()
for seed in range(120):
    draw, data = random.Random(seed), bytearray(whole)
    for _ in range(draw.choice([1, 4, 40])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    if seed % 10 == 0:
        del data[draw.randrange(len(data)):]
    open(path, "wb").write(data)
    try:
        read_rows([path], on_bad_row="skip")
        ends.add("rows")
    except DataError as error:
        assert str(error).startswith(path), error
        ends.add("sentence")
print(sorted(ends))
"""


@pytest.mark.parametrize("name", ["a.parquet", "stream.arrow", "file.arrow"])
def test_a_spoiled_table_is_rows_or_a_sentence_and_never_the_end_of_the_process(
    tmp_path: Path, name: str
) -> None:
    table = pa.Table.from_pylist(ROWS)
    table = table.set_column(3, "kind", table["kind"].dictionary_encode())
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table, path)
    else:
        make = pa.ipc.new_file if name == "file.arrow" else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table)
    done = subprocess.run([sys.executable, "-c", SPOILED, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "sentence" in done.stdout


@pytest.mark.parametrize(
    "error", [SystemError("column"), OverflowError("date"), RecursionError(), KeyError("x")]
)
def test_whatever_a_column_raises_is_a_sentence(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise error

    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    monkeypatch.setattr("potstill.data.tables.without_nulls", refuse)
    with pytest.raises(DataError, match=r"a\.parquet: is not a readable Parquet file: "):
        read_rows([str(tmp_path / "a.parquet")])


def test_whatever_a_hub_data_set_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise SystemError("column")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Odd())
    with pytest.raises(DataError, match="someone/odd: has a row that cannot be read: column"):
        read_rows(["someone/odd"])


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 5000 + ".jsonl", "~no-such-user-here/rows.jsonl", "a\0b.jsonl"]
)
def test_a_path_that_is_none_is_a_sentence(tmp_path: Path, name: str) -> None:
    spec = DataSpec.model_construct(**(DataSpec(train=("a",)).__dict__ | {"train": (name,)}))
    for read in (lambda: read_rows([name]), lambda: read_data(spec, tmp_path, [])):
        with pytest.raises(DataError, match=r"is no path|is neither a file|no such file"):
            read()


def test_a_named_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl: is no regular file"):
        read_rows([str(tmp_path / "rows.jsonl")])


def test_a_date_that_python_cannot_hold_is_a_sentence(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["q"], "when": pa.array([2**62], pa.timestamp("s"))})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a\.arrow: is not a readable Arrow file: "):
        read_rows([str(tmp_path / "a.arrow")])


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize("form", ["array", "wrapped", "line", "column", "arguments"])
def test_deep_nesting_is_a_sentence(tmp_path: Path, depth: int, form: str) -> None:
    deep = "[" * depth + "]" * depth
    path = tmp_path / ("a.json" if form in ("array", "wrapped") else "a.jsonl")
    call = {"name": "f", "arguments": '{"x": %s}' % deep}
    path.write_text(
        {
            "array": deep,
            "wrapped": '{"data": %s}' % deep,
            "line": '{"prompt": "q", "meta": %s}' % deep,
            "column": json.dumps({"messages": deep}),
            "arguments": json.dumps(
                {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]}
            ),
        }[form]
    )
    with pytest.raises(DataError, match=r"a\.jsonl?(:1)?: .*(nested too deeply|is text, not a list)"):
        read_rows([str(path)])


def test_nesting_that_tools_need_is_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", '{"prompt": "q [[{{", "meta": %s}' % ("[" * 60 + "]" * 60))
    assert len(read_rows([path]).rows) == 1


LONE = "x\\ud83dy"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": '[{"role": "user", "content": "%s"}]' % LONE},
        {"conversations": '[{"from": "human", "value": "%s"}]' % LONE},
        {"prompt": "q", "tools": '[{"name": "%s"}]' % LONE},
        {"prompt": "q", "history": '[["%s", "i"]]' % LONE},
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"%s": "%s"}' % (LONE, LONE)}]}]},
    ],
)  # fmt: skip
def test_half_a_character_inside_json_text_is_replaced_and_counted(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    rows = read_rows([write_lines(tmp_path / "a.jsonl", row)])
    text = json.dumps([rows.rows[0].messages, rows.rows[0].tools], ensure_ascii=False)
    text.encode()
    assert "x\ufffdy" in text
    assert rows.funnel["repaired"] == 1


def test_ids_may_begin_again_in_each_file(tmp_path: Path) -> None:
    files = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        rows = [{"id": i, "prompt": f"{number} {i}"} for i in range(3)]
        files.append(write_lines(tmp_path / str(number) / "rows.jsonl", *rows, {"id": 9, "prompt": "same"}))
    result = read_rows(files)
    ids = [row.id for row in result.rows]
    assert len(set(ids)) == len(ids) == 10
    assert ids[:4] == ["0", "1", "2", "9"]
    assert result.funnel["duplicate"] == 2
    assert [row.id for row in read_rows(files).rows] == ids


@pytest.mark.parametrize("fix", [{"id": "unused"}, {"key": "id"}])
def test_ids_that_repeat_within_a_file_can_be_left_out_in_the_recipe(
    tmp_path: Path, fix: dict[str, str]
) -> None:
    path = write_lines(tmp_path / "a.jsonl", *({"id": 1, "prompt": f"q{i}", "key": str(i)} for i in range(3)))
    with pytest.raises(DataError, match=r"data\.columns: \{id: unused\}"):
        read_rows([path])
    assert len({row.id for row in read_rows([path], columns=fix).rows}) == 3
