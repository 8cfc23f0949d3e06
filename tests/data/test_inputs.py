"""Rows that are refused, named or counted."""

from __future__ import annotations

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from potstill.data.rows import read_rows

TWO = "[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}]"


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


def test_duplicates_loops_and_refusals_are_counted(tmp_path):
    """Duplicate, second answer, loop and refusal: one each in the funnel, and only the duplicate is dropped."""
    plain = [{"prompt": f"question {i}", "response": f"answer {i}"} for i in range(6)]
    rows = [
        *plain,
        plain[0],
        plain[1] | {"response": "another"},
        {"prompt": "loop", "response": "To " * 200},
        {"prompt": "refuse", "response": "I'm sorry, but as an AI language model I can't help with that."},
    ]
    found = read_rows([write_lines(tmp_path / "a.jsonl", *rows)])
    funnel = {k: found.funnel[k] for k in ("duplicate", "same_prompt", "loop", "refusal", "kept")}
    assert funnel == {"duplicate": 1, "same_prompt": 1, "loop": 1, "refusal": 1, "kept": 9}


@pytest.mark.parametrize(
    "answer",
    [
        "The line \"I'm sorry, but I can't help with that\" is how such models refuse.",
        "She said: as an AI I would know. Then she laughed.",
        "la la la, sang the choir, and the show went on",
    ],
)
def test_a_quoted_refusal_is_not_counted_as_one(tmp_path, answer):
    """Words of a refusal inside an answer are not one."""
    found = read_rows([write_lines(tmp_path / "a.jsonl", {"prompt": "a", "response": answer})])
    assert (found.funnel["refusal"], found.funnel["loop"]) == (0, 0)
