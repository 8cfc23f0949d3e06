"""Recipes to start from."""

from __future__ import annotations

from typing import Any

from potstill.errors import RecipeErrors
from potstill.recipe.recipe import Recipe, expand, parse_recipe


def raw(*stages: Any, **top: Any) -> dict[str, Any]:
    """A small recipe as YAML gives it."""
    base: dict[str, Any] = {
        "teacher": {"model": "org/teacher"},
        "student": {"model": "org/student"},
        "data": {"train": "train.jsonl"},
    }
    return base | ({"stages": list(stages)} if stages else {}) | top


def read(*stages: Any, **top: Any) -> Recipe:
    """The same, checked."""
    return parse_recipe(raw(*stages, **top))


def names_of(method: str) -> list[str]:
    """The names of the stages that a method stands for."""
    return [stage.name for stage in expand(read(method=method)).stages]


def problems(*stages: Any, **top: Any) -> dict[str, str]:
    """What is wrong with it: path to sentence."""
    try:
        parse_recipe(raw(*stages, **top))
    except RecipeErrors as errors:
        messages = {problem.path: f"{problem.message} {problem.fix}".strip() for problem in errors.problems}
        assert len(messages) == len(errors.problems)
        return messages
    return {}


def tilted(student_lp: Any, teacher_lp: Any, *, beta: float = 0.5) -> Any:
    """A divergence from outside the package, for recipes that name one."""
