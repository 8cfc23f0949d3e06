"""What an answer has to be, read from its text."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from potstill.data.row import Row
from potstill.data.task import Task, read_schema, strict
from potstill.errors import DataError, RecipeError

SCHEMA = read_schema(
    '{"type": "object", "properties": {"why": {"type": "string"}, "n": {"type": "integer", "maximum": 9}},'
    ' "required": ["why", "n"], "additionalProperties": false}'
)
LABEL = Task("label", labels=("spam", "not spam"))
NUMBER = Task("number", answer_after="####")
JSON = Task("json", schema=SCHEMA)


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [
        (LABEL, "Spam.", "spam"),
        (LABEL, '<think>it sells\n</think>\n\n"NOT SPAM"', "not spam"),
        (Task("label", labels=("a", "b"), answer_after="So:"), "So: a? no. So: b", "b"),
        (NUMBER, "2 + 2 = 4\n#### 1,234.50", Decimal("1234.50")),
        (NUMBER, "-$3", Decimal(-3)),
        (NUMBER, "12 %.", Decimal(12)),
        (NUMBER, "1e3", Decimal(1000)),
        (JSON, ' {"why": "x", "n": 2}\n', {"why": "x", "n": 2}),
        (Task("json"), '{"anything": [1]}', {"anything": [1]}),
        (Task("text", answer_after="Answer:"), "long\nAnswer: short ", "short"),
    ],
)
def test_a_valid_answer_is_read(task: Task, text: str, value: Any) -> None:
    assert task.read(text) == value
    assert task.problem(text) == ""
    assert task.target(text) == text


@pytest.mark.parametrize(
    ("task", "text", "problem"),
    [
        (LABEL, "spam or not", "none of the labels ('spam or not')"),
        (LABEL, " ", "empty answer"),
        (LABEL, "<think>hm", "reasoning that never ends"),
        (NUMBER, "12 apples", "no number ('12 apples')"),
        (NUMBER, "NaN", "no number ('NaN')"),
        (NUMBER, "1_000", "no number ('1_000')"),
        (JSON, "[1]", "no JSON object (list)"),
        (JSON, '```json\n{"why": "", "n": 1}\n```', "JSON within a code fence"),
        (JSON, '{"why": "", "n": 1, "n": 2}', "no JSON (a key stands twice)"),
        (JSON, '{"n": NaN}', "no JSON (NaN is no JSON)"),
        (JSON, "[" * 100_000, "no JSON"),
        (JSON, '{"why": "", "n": "1"}', "not what the schema says (n: '1' is not of type 'integer')"),
        (JSON, '{"n": 1}', "not what the schema says ('why' is a required property)"),
    ],
)
def test_an_invalid_answer_has_a_reason(task: Task, text: str, problem: str) -> None:
    assert task.problem(text).startswith(problem)


@pytest.mark.parametrize(
    ("task", "text", "target"),
    [
        (Task("label", labels=("spam", "ham"), alone=True), "<think>x</think>SPAM.", "spam"),
        (Task("number", answer_after="####", alone=True), "a\n#### $12.50", "$12.50"),
        (Task("json", schema=SCHEMA, rationale="why", alone=True), '{"why": "x", "n": 2}', '{"n": 2}'),
        (Task("text", alone=True), "<think>a</think>\n\nb", "b"),
    ],
)
def test_the_answer_alone_is_a_target_without_its_rationale(task: Task, text: str, target: str) -> None:
    """The target is valid itself, or its student could never be."""
    assert task.target(text) == target
    assert task.problem(target) == ""


def test_the_provider_is_sent_the_schema_and_told_to_follow_it_where_it_can_be() -> None:
    assert JSON.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
    }
    assert Task("json").response_format == {"type": "json_object"}
    assert Task("json", schema=SCHEMA, constrain=False).response_format is None
    assert LABEL.response_format is None
    assert not strict({"type": "object", "properties": {"a": {}}, "required": ["a"]})
    assert not strict(SCHEMA | {"properties": {"why": {}, "n": {"type": "object"}}})


def test_only_what_a_server_with_the_schema_cannot_write_shows_that_it_is_ignored() -> None:
    assert JSON.ignores("Sure! Here it is") == "no JSON (Expecting value: line 1 column 1 (char 0))"
    assert JSON.ignores('{"n": 1}') == "it holds n"
    assert JSON.ignores('{"why": "", "n": 99}') == ""  # not every server knows `maximum`
    assert Task("json", schema={"type": "object"}).ignores("no") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "holds no JSON"),
        ("[]", "holds no schema of an object"),
        ('{"type": "objct"}', "is no JSON schema: type"),
        ('{"type": "array"}', "describes 'array', and an answer is an object"),
        ('{"$ref": "https://example.org/s.json"}', "refers to https://example.org/s.json, which is not read"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match="schema") as error:
        read_schema(text)
    assert said in str(error.value)


def test_the_right_answer_of_a_row_must_be_valid_and_names_the_row_where_it_is_not() -> None:
    task = Task("label", labels=("0", "1"), gold="y")
    assert task.gold_of(Row("a", extra={"y": 1})) == "1"
    assert task.gold_of(Row("a", extra={})) == ""
    with pytest.raises(DataError, match=r"rows.jsonl:3: .*column 'y' is none of the labels \('2'\)"):
        task.gold_of(Row("a", extra={"y": 2}, source="rows.jsonl:3"))
