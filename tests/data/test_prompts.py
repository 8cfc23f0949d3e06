"""Rows as prompts, with room for an answer in both models."""

from __future__ import annotations

from typing import Any

import pytest

from builders import places
from builders.chats import chat
from builders.cli import potstill
from builders.reading import reader
from builders.tiny import BOS, HEADER, TEMPLATE
from potstill.data.prompts import MEASURED, VALIDATION, Prompt, prompts, reasons
from potstill.data.reader import Readers
from potstill.data.rows import Row
from potstill.errors import DataError

ALIKE = Readers(reader(), reader())
LONGER = Readers(reader(), reader(template="w5 w6 w7 " + TEMPLATE))


def ask(readers: Readers, rows: list[Row], **changes: Any):
    settings: dict[str, Any] = {
        "train_ids": {"a"},
        "heldout_ids": {"b"},
        "new_tokens": 4,
        "samples": 3,
        "max_length": 8,
    }
    return prompts(readers, rows, **settings | changes)


def test_only_rows_to_train_on_get_several_answers() -> None:
    kept, left_out = ask(ALIKE, [Row("a", chat("w10")), Row("b", chat("w12"))])
    assert kept == [Prompt("a", (BOS, 10, HEADER), 3), Prompt("b", (BOS, 12, HEADER), 1)]
    assert not left_out


def test_an_answer_must_fit_into_both_models() -> None:
    rows = [Row("a", chat("w10")), Row("b", chat("w10 w10 w10")), Row("c", chat("w12"))]
    kept, left_out = ask(ALIKE, rows)
    assert [prompt.row_id for prompt in kept] == ["a", "c"]
    assert left_out == {"measured prompt too long": 1}
    with pytest.raises(DataError, match=r"none of the 3 prompts .*3 prompt too long.* leaves 4 tokens"):
        ask(LONGER, rows)


def test_what_is_left_out_says_what_its_row_was_for() -> None:
    """Rows to train on bear no mark, and those that choose the best weights are not counted as held-out ones."""
    long = chat("w10 w10 w10")
    _, left_out = ask(ALIKE, [Row("kept", chat("w10")), *(Row(name, long) for name in "abc")])
    assert left_out == {f"{mark}prompt too long": 1 for mark in ("", MEASURED, VALIDATION)}
    assert reasons(left_out) == {"prompt too long": 3}


def test_a_teacher_without_a_reader_gets_the_students_ids() -> None:
    kept, _ = ask(Readers(None, reader()), [Row("a", chat("w10"))])
    assert kept == [Prompt("a", (BOS, 10, HEADER), 3)]


def test_a_row_that_cannot_be_rendered_stops_or_is_counted() -> None:
    rows = [Row("a", chat("w10")), Row("b", (), source="rows.jsonl:2")]
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the conversation is empty"):
        ask(ALIKE, rows)
    kept, left_out = ask(ALIKE, rows, on_bad_row="skip")
    assert [prompt.row_id for prompt in kept] == ["a"]
    assert left_out == {"measured prompt refused by the template": 1}


def test_plain_text_is_refused_even_where_bad_rows_are_skipped() -> None:
    with pytest.raises(DataError, match="plain text"):
        ask(ALIKE, [Row("a", text="w10", source="rows.jsonl:1")], on_bad_row="skip")


TWO = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]"
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": [{"role": "system", "content": "w5"}, {"role": "user", "content": "w6"}]}, "no system"),
        ({"messages": [{"role": "user", "content": "w5"}, {"role": "tool", "content": "w6"}]}, "no tool"),
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_prompt_that_the_template_refuses_is_named_and_can_be_skipped(tmp_path, row, words, command):
    """The teacher's prompts are rows of a file: an error says which line, and on_bad_row: skip leaves it out."""
    turns = [{"messages": [{"role": "user", "content": p["prompt"]}]} for p in places.prompts(40)]
    rows = [row, *turns[1:]]
    places.write(tmp_path, rows, stages=TWO)
    template = tmp_path / "teacher/chat_template.jinja"
    tool = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tool role') }}{% endif %}{% endfor %}"
    template.write_text(STRICT + tool + template.read_text())
    done = potstill(command, "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "rows.jsonl:1" in done.stderr
    places.write(tmp_path, rows, data="{train: rows.jsonl, on_bad_row: skip}", stages=TWO)
    assert potstill(command, "r.yaml", cwd=tmp_path).returncode == 0


def test_plain_text_rows_of_a_generate_stage_are_refused_by_line(tmp_path):
    """A generate stage needs prompts: rows of plain text are named, and what to do with them is said."""
    places.write(tmp_path, [{"text": f"w{20 + i} w40"} for i in range(24)], stages=TWO)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "rows.jsonl:1: this row is plain text" in done.stderr
