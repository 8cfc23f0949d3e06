"""Prompts that the recipe writes."""

from __future__ import annotations

import pytest

from builders.chats import write_lines
from potstill.data.asked import Asked, Template, applied, require_bounded, require_hidden
from potstill.data.dataset import Dataset
from potstill.data.row import Row
from potstill.data.rows import read_rows
from potstill.errors import DataError, RecipeError

CALL = {"type": "function", "function": {"name": "area", "arguments": {"side": 5}}}
TALK = (
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "how large?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "25", "name": "area"},
    {"role": "assistant", "content": "25"},
)


def user(text: str) -> Asked:
    return Asked(Template(text, "teacher.prompt"))


def dataset(*rows: Row) -> Dataset:
    return Dataset(rows, (), (), "prompt", {}, "")


def test_a_file_writes_the_last_turn_of_the_user_and_leaves_all_other_turns() -> None:
    """Field case 45: what the teacher is asked and what the student is trained on are both known."""
    row = Row("a", TALK, extra={"lang": "en"})
    made = applied(dataset(row), user("{{ system }}! [{{ lang }}] {{ prompt }}"), None).train[0]
    assert made.messages == TALK
    asked = made.for_teacher.messages
    assert asked[3]["content"] == "be brief! [en] how large?"
    assert [*asked[:3], *asked[4:]] == [*TALK[:3], *TALK[4:6]]
    assert made.prompt_text == row.prompt_text


def test_a_system_prompt_takes_the_place_of_the_rows_own_or_takes_it_away() -> None:
    row = Row("a", TALK[:4])
    student = Asked(system=Template("{% if prompt == 'hi' %}x{% endif %}", "student.prompt.system"))
    made = applied(dataset(row), Asked(system=Template("long", "teacher.prompt.system")), student).train[0]
    assert [turn["role"] for turn in made.messages] == ["user", "assistant", "user"]
    assert made.for_teacher.messages[0] == {"role": "system", "content": "long"}
    assert len(made.for_teacher.messages) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{ colour }}", "'colour' is undefined. It may print prompt, system, messages, lang."),
        ("{{ prompt.__class__.__mro__ }}", "unsafe"),
        ("{% include 'secret' %}", "no loader"),
        ("{% if false %}x{% endif %}", "writes nothing for this row"),
        ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "more than 1,000,000 characters"),
    ],
)
def test_a_file_that_cannot_be_written_names_the_row(text: str, said: str) -> None:
    row = Row("a", TALK[:2], extra={"lang": "en"}, source="rows.jsonl:7")
    with pytest.raises(DataError) as error:
        user(text).turns(row)
    assert error.value.path == "rows.jsonl:7"
    assert said in str(error.value)


def test_rows_that_a_file_refuses_are_left_out_and_told_where_the_recipe_skips() -> None:
    rows = Row("a", TALK[:2], extra={"lang": "en"}), Row("b", TALK[:2], source="rows.jsonl:8")
    left_out: list[str] = []
    made = applied(dataset(*rows), user("{{ lang }}"), None, left_out)
    assert [row.id for row in made.train] == ["a"]
    assert "rows.jsonl:8" in left_out[0]
    with pytest.raises(DataError, match="'lang' is undefined"):
        applied(dataset(*rows), user("{{ lang }}"), None)


def test_a_file_without_end_is_refused_within_seconds() -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match=r"teacher.prompt: the template needs more than .* for a few rows"):
        require_bounded(user(loop), [Row("a", TALK[:2])])


def test_a_file_that_prints_the_right_answer_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"teacher.prompt: prints label, which holds the right answer"):
        require_hidden(user("{{ prompt }} {{ label }}"), "label")
    require_hidden(user("{{ prompt }}"), "label")


def test_a_broken_file_is_named() -> None:
    with pytest.raises(RecipeError, match=r"teacher.prompt: is no Jinja template"):
        _ = user("{% if %}").columns


def test_rows_that_differ_in_what_a_prompt_prints_are_two_rows(tmp_path) -> None:
    rows = [{"prompt": "sort", "title": "a"}, {"prompt": "sort", "title": "b"}]
    file = write_lines(tmp_path / "r.jsonl", *rows)
    assert len(read_rows([file], used=["title"]).rows) == 1
    read = read_rows([file], printed=["title"])
    assert len(read.rows) == 2
    assert read.unread == {}
