"""JSON-lines files."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.store.lines import append_line, read_journal, read_lines, read_tail, write_journal, write_lines


def test_lines_are_read_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_lines(file, [{"n": 1}, {"text": "zwei\u2028\n"}])
    append_line(file, {"n": 3})
    assert read_lines(file) == [{"n": 1}, {"text": "zwei\u2028\n"}, {"n": 3}]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_that_does_not_exist_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("end", ["", "\n", "\n\n", '{"n"', '{"n": 2, "text": "\n'])
def test_half_a_last_line_is_left_out(tmp_path: Path, end: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"n": 1}\n' + end)
    assert read_lines(file) == read_tail(file) == [{"n": 1}]


def test_a_broken_line_before_the_last_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"n"\n{"n": 1}\n')
    with pytest.raises(ValueError, match="delimiter"):
        read_lines(file)


def test_the_tail_holds_the_whole_lines_within_its_size(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_lines(file, [{"n": n} for n in range(100)])
    assert read_tail(file, size=25) == [{"n": 98}, {"n": 99}]
    assert read_tail(file) == read_lines(file)


def test_a_journal_without_its_damaged_lines_is_read(tmp_path: Path, caplog) -> None:
    """A changed byte that leaves JSON is found by the line's checksum."""
    file = tmp_path / "a.jsonl"
    for number in range(4):
        append_line(file, {"n": number, "text": "ä"})
    file.write_bytes(file.read_bytes().replace(b'"n": 1', b'"n": 7').replace(b'{"n": 2', b'["n": 2'))
    assert [line["n"] for line in read_journal(file)] == [0, 3]
    assert "has 2 damaged lines" in caplog.text
    with pytest.raises(ValueError, match="checksum"):
        read_lines(file)
    write_journal(file, read_journal(file))
    assert [line["n"] for line in read_lines(file)] == [0, 3]


@pytest.mark.parametrize("line", ["[]", "3", "null", '"text"'])
def test_a_line_that_is_no_object_is_left_out_of_a_journal(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n")
    append_line(tmp_path / "a.jsonl", {"n": 1})
    assert read_journal(tmp_path / "a.jsonl") == [{"n": 1}]
