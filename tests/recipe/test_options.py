"""What an option accepts, read from its annotation."""

from __future__ import annotations

import ast
from typing import Any

import pytest

from potstill.recipe.options import Option, literal, read_options


def options(source: str, *, moving: bool = True) -> dict[str, Option]:
    (function,) = ast.parse(f"def f({source}): ...").body
    assert isinstance(function, ast.FunctionDef)
    return {option.name: option for option in read_options(function.args, moving=moving)}


def span(start: object = 4, end: object = 1) -> dict[str, object]:
    return {"from": start, "to": end}


@pytest.mark.parametrize(
    ("annotation", "words", "fit", "unfit"),
    [
        ("int", "a whole number", [0, -3], [1.0, True, "1", None]),
        ("bool", "true or false", [True, False], [0, "true", None]),
        ("str", "text", ["", "a"], [1, None]),
        ("'int | None'", "a whole number or null", [2, None], [1.5, False]),
        ("Literal['a', 2]", "a or 2", ["a", 2], ["b", None]),
        ("typing.Literal['a'] | bool", "a or true or false", ["a", False], ["b", 3]),
        ("float", "a finite number", [1, 0.5, {"linear": span()}, {"cosine": span(0, 1.5)}],
         [True, "1", float("inf"), {}, {"linear": 4}, {"linear": {"from": 4}}, {"line": span()},
          {"linear": span() | {"by": 1}}, {"linear": span(), "cosine": span()}, {"cosine": span("a")},
          {"cosine": span(float("nan"))}]),
    ],
)  # fmt: skip
def test_an_annotation_says_what_fits(annotation: str, words: str, fit: list[Any], unfit: list[Any]) -> None:
    option = options(f"*, o: {annotation}")["o"]
    assert option.expected == words
    assert [value for value in fit if not option.fits(value)] == []
    assert [value for value in unfit if option.fits(value)] == []


@pytest.mark.parametrize("argument", ["o", "o: Tensor", "o: list[int]"])
def test_an_annotation_of_another_kind_accepts_everything(argument: str) -> None:
    option = options(f"*, {argument}")["o"]
    assert all(map(option.fits, ([1], None, "a")))
    assert option.schema == {}


def test_only_numbers_of_a_moving_family_may_be_schedules() -> None:
    both = "*, beta: float = 0.5, rows: int = 1"
    assert [o.fits({"linear": span()}) for o in options(both).values()] == [True, False]
    assert [o.fits({"linear": span()}) for o in options(both, moving=False).values()] == [False, False]
    assert options(both, moving=False)["beta"].schema == {"type": "number", "default": 0.5}


def test_only_keyword_arguments_are_options_and_a_default_makes_them_optional() -> None:
    read = options("lp, /, x=1, *, label: str, rows: int | None = None, floor: float = 0.1")
    assert [(o.name, o.required, o.default) for o in read.values()] == [
        ("label", True, None), ("rows", False, None), ("floor", False, 0.1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "value"),
    [("(1, 'a')", (1, "a")), ("frozenset({'a'})", {"a"}), ("frozenset()", set()), ("-2.5", -2.5), ("a * 2", None),
     ("frozenset(a)", None)],
)  # fmt: skip
def test_a_literal_is_its_value_and_any_other_expression_none(source: str, value: object) -> None:
    assert literal(ast.parse(source, mode="eval").body) == value
