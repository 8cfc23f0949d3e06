"""Files as people have them: marks, blanks, broken lines, nulls, half an emoji, five megabytes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.chats import write_lines
from potstill.data.rows import read_rows
from potstill.errors import DataError

GOOD = {"prompt": "hi", "response": "hello"}


def good(number: int) -> dict[str, Any]:
    return {"id": number, "prompt": f"hi {number}", "response": "hello"}


def test_byte_order_mark_and_crlf_leave_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(good(i)).encode() for i in range(3)))
    rows = read_rows([str(path)])
    assert [row.id for row in rows.rows] == ["0", "1", "2"]
    assert not any("\r" in message["content"] for row in rows.rows for message in row.messages)


def test_broken_line_is_named_and_blanks_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(good(1)), "", "   ", '{"id":1,', json.dumps(good(2))]))
    with pytest.raises(DataError, match=r"a\.jsonl:4: .*not valid JSON.*on_bad_row: skip"):
        read_rows([str(path)])
    rows = read_rows([str(path)], on_bad_row="skip")
    assert len(rows.rows) == 2
    nonzero = {name: count for name, count in rows.funnel.items() if count}
    assert nonzero == {"read": 5, "blank": 2, "broken": 1, "kept": 2}


@pytest.mark.parametrize(("line", "fault"), [('{"id":1,', "at character 9"), ('{"id" 1}', "at character 7")])
def test_a_broken_line_is_named_with_the_character_within_it(tmp_path: Path, line: str, fault: str) -> None:
    """Not as "line 2 column 1" of a file's fourth line."""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(good(1)), line, json.dumps(good(2))]))
    with pytest.raises(DataError, match=rf"a\.jsonl:2: the line is not valid JSON: .* {fault}\."):
        read_rows([str(path)])


@pytest.mark.parametrize("content", ["", "\n  \n\n"])
def test_file_without_rows_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match="no rows"):
        read_rows([str(path)])


def test_an_empty_file_beside_a_good_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(DataError, match=r"b\.jsonl: has no rows"):
        read_rows([write_lines(tmp_path / "a.jsonl", GOOD), str(tmp_path / "b.jsonl")])


@pytest.mark.parametrize("bad", ["\\ud83d", "\\u0000", "\\u001b"])
def test_half_an_emoji_and_control_characters_are_replaced_and_counted(tmp_path: Path, bad: str) -> None:
    line = '{"prompt": "a", "response": "x%sy", "meta": {"k": ["%s"]}}' % (bad, bad)
    rows = read_rows([write_lines(tmp_path / "a.jsonl", good(1), line, good(2))])
    assert rows.rows[1].messages[-1]["content"] == "x\ufffdy"
    assert rows.rows[1].extra == {"meta": {"k": ["\ufffd"]}}
    assert (rows.funnel["repaired"], rows.funnel["kept"]) == (1, 3)
    "".join(message["content"] for row in rows.rows for message in row.messages).encode()


def test_a_whole_emoji_written_as_a_pair_stays(tmp_path: Path) -> None:
    rows = read_rows([write_lines(tmp_path / "a.jsonl", '{"prompt": "a", "response": "\\ud83d\\ude00"}')])
    assert rows.rows[0].messages[-1]["content"] == "\U0001f600"
    assert rows.funnel["repaired"] == 0


def test_line_separators_inside_text_do_not_split_a_line(tmp_path: Path) -> None:
    row = {"prompt": "a\u2028b\u0085c\x0bd", "response": "x"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_rows([str(path)]).rows[0].messages[0]["content"] == row["prompt"]


def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff", "response": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*not UTF-8 at byte 12"):
        read_rows([str(path)])


def test_utf16_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-16")
    with pytest.raises(DataError, match="UTF-16"):
        read_rows([str(path)])


def test_an_optional_field_may_be_null_in_one_file_and_text_in_another(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", {**good(1), "meta": None})
    second = write_lines(tmp_path / "b.jsonl", {**good(2), "meta": "s"})
    assert [row.extra["meta"] for row in read_rows([first, second]).rows] == [None, "s"]


def test_content_that_is_more_than_text_in_one_row_names_that_row(tmp_path: Path) -> None:
    text = {"messages": [{"role": "user", "content": "x"}]}
    parts = {"messages": [{"role": "user", "content": [{"type": "image_url", "url": "x"}]}]}
    with pytest.raises(DataError, match=r"a\.jsonl:2: messages\[0\]\.content\[0\] is 'image_url'"):
        read_rows([write_lines(tmp_path / "a.jsonl", text, parts)])


@pytest.mark.parametrize("line", ["[1, 2]", '"text"', "3", "null", "[" * 100_000])
def test_a_line_that_is_no_object_counts_as_a_broken_row(tmp_path: Path, line: str) -> None:
    rows = read_rows([write_lines(tmp_path / "a.jsonl", good(1), line, good(2))], on_bad_row="skip")
    assert (rows.funnel["kept"], rows.funnel["broken"]) == (2, 1)


def test_one_enormous_row_is_read_like_any_other(tmp_path: Path) -> None:
    giant = {"prompt": "long", "response": "word " * 1_000_000}
    rows = read_rows([write_lines(tmp_path / "a.jsonl", *(good(i) for i in range(50)), giant)])
    assert len(rows.rows[-1].messages[-1]["content"]) == 5_000_000


def test_duplicates_are_dropped_and_other_answers_loops_and_refusals_are_counted(tmp_path: Path) -> None:
    rows = [
        *(good(i) for i in range(6)),
        GOOD,
        GOOD,
        {**GOOD, "response": "another"},
        {"prompt": "loop", "response": "To " * 200},
        {"prompt": "refuse", "response": "I'm sorry, but as an AI language model I can't help with that."},
    ]
    result = read_rows([write_lines(tmp_path / "a.jsonl", *rows)])
    funnel = {name: count for name, count in result.funnel.items() if count}
    assert funnel == {"read": 11, "duplicate": 1, "same_prompt": 1, "loop": 1, "refusal": 1, "kept": 10}
    assert len(result.rows) == 10


def test_one_id_for_two_contents_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", good(1), {**good(1), "response": "other"})
    with pytest.raises(DataError, match=r"a\.jsonl:2: the id '1' stands for another row in .*a\.jsonl:1"):
        read_rows([path], on_bad_row="skip")


def test_ids_made_from_content_do_not_depend_on_place(tmp_path: Path) -> None:
    first = read_rows([write_lines(tmp_path / "a.jsonl", GOOD, {"prompt": "x", "response": "y"})])
    second = read_rows([write_lines(tmp_path / "b.jsonl", {"prompt": "x", "response": "y", "n": 1}, GOOD)])
    assert [row.id for row in first.rows] == [row.id for row in second.rows][::-1]
    assert len({row.id for row in first.rows}) == 2


def test_funnel_adds_up(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD, GOOD, "", "{", {"prompt": "a", "response": " "}, good(3))
    funnel = read_rows([path], on_bad_row="skip").funnel
    assert funnel["read"] == sum(funnel[k] for k in ("blank", "broken", "empty", "duplicate", "kept")) == 6
    assert funnel["empty"] == 1


def test_an_empty_answer_is_dropped_and_counted_even_when_strict(tmp_path: Path) -> None:
    empty = {"prompt": "a", "response": ""}
    funnel = read_rows([write_lines(tmp_path / "a.jsonl", GOOD, empty)]).funnel
    assert (funnel["empty"], funnel["broken"], funnel["kept"]) == (1, 0, 1)
    with pytest.raises(DataError, match=r"none of the 1 rows .*a\.jsonl:1: the column 'response' is empty"):
        read_rows([write_lines(tmp_path / "a.jsonl", empty)])


def test_only_unusable_rows_is_an_error_with_the_first_cause(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", "{", {"prompt": 3})
    with pytest.raises(DataError, match=r"none of the 2 rows can be used\. .*a\.jsonl:1: .*not valid JSON"):
        read_rows([path], on_bad_row="skip")


def test_limit_counts_good_rows_and_reads_no_further(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", good(1), "", good(2), good(3), "{")
    assert [row.id for row in read_rows([path], limit=2).rows] == ["1", "2"]


def test_a_misspelt_file_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *args: pytest.fail(f"the hub was asked for {args}"))
    for name in ("promts.jsonl", str(tmp_path / "missing"), "~/nowhere/at/all"):
        with pytest.raises(DataError, match="no such file|neither a file nor"):
            read_rows([name])


def test_a_hub_name_is_refused_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match="someone/data: is no file here.*HF_HUB_OFFLINE is set"):
        read_rows(["someone/data"])


def test_a_hub_data_set_with_several_splits_needs_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {"first": [GOOD], "second": [good(2)]}
    monkeypatch.setattr(
        "datasets.load_dataset", lambda name, subset, split: splits[split] if split else splits
    )
    with pytest.raises(DataError, match="has the splits first, second"):
        read_rows(["someone/data"])
    assert read_rows(["someone/data:main:second"]).rows[0].id == "2"


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    values = [{"id": str(i), "prompt": f'say "{i}",\nplease', "response": "1"} for i in range(3)]
    write_lines(tmp_path / "a.jsonl", *values)
    write_lines(tmp_path / "lines.json", *values)
    (tmp_path / "array.json").write_text(json.dumps(values, indent=1))
    (tmp_path / "wrapped.json").write_text(json.dumps({"data": values}))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    quoted = [[v["id"], '"' + v["prompt"].replace('"', '""') + '"', v["response"]] for v in values]
    (tmp_path / "a.csv").write_text("\r\n".join(map(",".join, [["id", "prompt", "response"], *quoted])))
    (tmp_path / "a.tsv").write_text("\n".join(map("\t".join, [["id", "prompt", "response"], *quoted])))
    table = pa.Table.from_pylist(values)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    seen = [[(row.id, row.messages) for row in read_rows([str(file)]).rows] for file in files]
    assert all(rows == seen[0] for rows in seen)
    assert len(seen[0]) == 3


def test_a_saved_data_set_folder_is_read_without_its_description(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([GOOD, good(1)]).save_to_disk(tmp_path / "saved")
    assert len(read_rows([str(tmp_path / "saved")]).rows) == 2


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.json", "a.jsonl.gz"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(DataError, match=name):
        read_rows([str(tmp_path / name)])


def test_a_long_csv_field_is_read_and_a_surplus_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,response\na,{'x' * 200_000}\nb,c,d\n")
    with pytest.raises(DataError, match=r"a\.csv:3: .*more fields"):
        read_rows([str(path)])
    rows = read_rows([str(path)], on_bad_row="skip").rows
    assert len(rows[0].messages[-1]["content"]) == 200_000
