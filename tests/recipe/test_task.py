"""The sections `task` and `costs`, and the prompts of teacher and student."""

from __future__ import annotations

from typing import Any

import pytest

from potstill.errors import RecipeErrors
from potstill.recipe import yaml
from potstill.recipe.recipe import Recipe, dump_yaml, parse_recipe

SERVED = {"endpoint": "http://localhost:1/v1", "model": "big"}
LEAST: dict[str, Any] = {"teacher": SERVED, "student": {"model": "s"}, "data": {"train": "rows.jsonl"}}


def parsed(**changes: Any) -> Recipe:
    return parse_recipe(LEAST | changes)


def refused(**changes: Any) -> str:
    with pytest.raises(RecipeErrors) as error:
        parsed(**changes)
    return str(error.value)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"type": "label"}, "task.labels: must hold two labels or more"),
        ({"type": "label", "labels": ["yes", "Yes"]}, "task.labels: must hold two labels or more"),
        ({"type": "number", "labels": ["a", "b"]}, "task.labels: has no effect on a task of type number"),
        ({"type": "text", "schema": "s.json"}, "task.schema: has no effect on a task of type text"),
        ({"type": "json", "answer_after": "####"}, "it belongs to type: label or number or text"),
        ({"type": "json", "tolerance": 0.1}, "task.tolerance: has no effect on a task of type json"),
        ({"type": "jsn"}, "Did you mean json?"),
        ({"type": "json", "shema": "s"}, "task.shema: unknown key; did you mean schema?"),
        ({"labels": ["a", "b"]}, "task.type"),
    ],
)  # fmt: skip
def test_a_task_that_cannot_be_is_refused_with_its_key(task: dict[str, Any], said: str) -> None:
    assert said in refused(task=task)


@pytest.mark.parametrize(
    "teacher",
    [
        SERVED | {"prompt": "long.j2"},
        {"served": SERVED | {"prompt": {"user": "long.j2"}}},
        {"model": "m", "prompt": "long.j2"},
    ],
)
def test_a_prompt_stands_beside_any_way_to_name_a_teacher(teacher: dict[str, Any]) -> None:
    recipe = parsed(teacher=teacher, student={"model": "s", "prompt": {"system": "short.j2"}})
    assert recipe.teacher.prompt is not None
    assert recipe.teacher.prompt.user == "long.j2"
    assert "prompt" not in recipe.teacher.plugin[1]
    assert "prompt" not in recipe.student.plugin[1]
    again = parse_recipe(yaml.load_yaml(dump_yaml(recipe), ""))
    assert again == recipe
    assert again.hash() == recipe.hash()


def test_a_prompt_changes_the_hash_and_costs_do_not() -> None:
    assert parsed(teacher=SERVED | {"prompt": "long.j2"}).hash() != parsed().hash()
    assert parsed(costs={"serving_hour": 1.0}).hash() == parsed().hash()


def test_a_prompt_without_a_file_is_refused() -> None:
    assert "teacher.prompt: names no file" in refused(teacher=SERVED | {"prompt": {}})
