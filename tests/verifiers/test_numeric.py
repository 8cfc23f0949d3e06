"""The number that an answer means, and when it is the gold one."""

from __future__ import annotations

from fractions import Fraction

import pytest

from potstill.data.row import Row
from potstill.errors import DataError, RecipeError
from potstill.verifiers import numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7", 7), ("so it is 1,234.50 dollars.", Fraction(2469, 2)), ("3/4.", Fraction(3, 4)),
        ("#### 72\nI checked 3 times", 72), (r"\boxed{1{,}000} or \boxed{12}", 12), ("x = \u22125", -5),
        ("5-3=2", 2), ("3-4", 4), ("50%", 50), ("about .5", Fraction(1, 2)), ("1e3", 1000), ("7.", 7),
        ("none", None), ("v2.1a", None), ("1/0", None), ("", None), ("On 2026-11-27", 27), ("1,000,000", 10**6),
    ],
)  # fmt: skip
def test_an_answer_means_its_last_number_or_the_one_that_it_marks(text: str, number) -> None:
    assert numeric.number_in(text) == number


def row(answer: str = "", **extra) -> Row:
    turns = [{"role": "user", "content": "How many?"}]
    return Row(
        "r", (*turns, {"role": "assistant", "content": answer}) if answer else tuple(turns), extra=extra
    )


def test_the_gold_number_is_in_a_column_or_in_the_rows_own_answer() -> None:
    assert numeric.score("It is 72.0", row("So #### 72"))
    assert numeric.score("It is 72.0", row(result=72), gold="result")
    assert not numeric.score("It is 73", row(result="72"), gold="result")
    assert not numeric.score("I do not know", row(result="72"), gold="result")


def test_numbers_are_compared_exactly_unless_a_tolerance_is_given() -> None:
    assert numeric.score("0.30", row(result="3/10"), gold="result")
    assert not numeric.score("3.14", row(result="3.14159"), gold="result")
    assert numeric.score("3.14", row(result="3.14159"), gold="result", tolerance=0.001)


@pytest.mark.parametrize("extra", [{}, {"result": None}, {"result": "none"}, {"result": True}])
def test_a_row_without_a_gold_number_is_named(extra) -> None:
    for judge in (
        lambda one: numeric.score("1", one, gold="result"),
        lambda one: numeric.require_row(one, gold="result"),
    ):
        with pytest.raises(DataError, match="no number in the column 'result'"):
            judge(row(**extra))


def test_a_tolerance_below_0_is_refused() -> None:
    with pytest.raises(RecipeError):
        numeric.require_row(row(result=1), gold="result", tolerance=-0.1)
