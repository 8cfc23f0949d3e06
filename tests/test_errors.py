"""Errors as a person and as a program reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from potstill import errors
from potstill.errors import Interrupted, PotstillError, RecipeError, RecipeErrors

KINDS = [
    kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__
]


def test_an_error_names_the_place_the_message_and_the_way_out() -> None:
    error = RecipeError("must be text, not 7.", fix="Put it in quotes.", path="teacher.model", value=7)
    assert str(error) == "teacher.model: must be text, not 7. Put it in quotes."
    assert str(RecipeError("is empty.")) == "is empty."


def test_several_errors_are_listed_one_a_line_and_one_by_one_for_programs() -> None:
    error = RecipeErrors([RecipeError("is missing.", path="data"), RecipeError("is empty.", path="name")])
    assert str(error) == "data: is missing.\nname: is empty."
    assert [problem["path"] for problem in error.as_dict()["problems"]] == ["data", "name"]  # type: ignore[attr-defined]


def test_an_error_for_programs_is_json_whatever_its_value() -> None:
    error = PotstillError("is odd.", value=Path("a"))
    keys = {"code", "message", "path", "value", "fix", "retryable", "exit_code"}
    assert json.loads(json.dumps(error.as_dict())).keys() == keys
    assert error.as_dict()["value"] == "a"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_error_has_a_code_and_an_exit_code_of_the_table(kind: type[PotstillError]) -> None:
    assert kind is PotstillError or kind.code != PotstillError.code
    assert kind.exit_code in (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_an_interrupt_exits_as_the_shell_expects(number: int, code: int) -> None:
    error = Interrupted("stopped.", signal_number=number)
    assert (error.exit_code, error.retryable) == (code, True)
