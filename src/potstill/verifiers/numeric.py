"""The last number of an answer is the number in a gold column, or in the row's own answer."""

from __future__ import annotations

import re
from fractions import Fraction

from potstill.data.row import Row
from potstill.errors import DataError, RecipeError

COLUMN = "gold"
_NUMBER = re.compile(
    r"(?<![\w.])[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
    r"(?:\s?/\s?\d+(?!\d|\.\d|/))?"
)
# Where an answer says which of its numbers is meant: a box of LaTeX, or the mark of GSM8K.
_MEANT = re.compile(r"\\boxed\s*\{([^{}]*)\}|####\s*([^\n]*)")


def score(answer: str, row: Row, *, gold: str | None = None, tolerance: float = 0.0) -> bool:
    """Compare both numbers as fractions, so exactly: 0.5, 1/2 and 50e-2 are one number; 50 % is 50.

    Args:
        gold: the column; null is the answer that the row brings along.
        tolerance: how far off the answer may be, as a share of the gold number.

    Raises:
        DataError: the row has no number there; names it.
    """
    wanted, given = _wanted(row, gold), number_in(answer)
    return given is not None and abs(given - wanted) <= abs(wanted) * Fraction(tolerance)


def require_row(row: Row, *, gold: str | None = None, tolerance: float = 0.0) -> None:
    """Raises DataError where the row has no number to compare with, RecipeError where the tolerance is below 0."""
    if tolerance < 0:
        raise RecipeError(
            f"cannot be {tolerance}.", path="generate.verifier.numeric.tolerance", fix="Use 0 or more."
        )
    _wanted(row, gold)


def _wanted(row: Row, gold: str | None) -> Fraction:
    number = number_in(_gold(row, gold))
    if number is None:
        raise DataError(
            f"the row has no number in {'its own answer' if gold is None else f'the column {gold!r}'}.",
            path=row.where,
            fix="Name the column in verifier: {numeric: {gold: COLUMN}}, or leave such rows out.",
        )
    return number


def _gold(row: Row, column: str | None) -> str:
    if column is not None:
        value = row.extra.get(column)
        return "" if value is None or isinstance(value, bool) else str(value)
    return "" if row.gold is None else row.gold["content"]


def number_in(text: str) -> Fraction | None:
    """The number that a text ends with, or that it marks as its result; None without one."""
    marked = [next(filter(None, match.groups()), "") for match in _MEANT.finditer(text)]
    part = marked[-1] if marked else text
    numbers = _NUMBER.findall(part.replace("\\,", ""))
    return _read(numbers[-1]) if numbers else None


def _read(text: str) -> Fraction | None:
    above, _, below = text.replace(",", "").replace("\u2212", "-").partition("/")
    try:
        return Fraction(above.strip()) / Fraction(below.strip() or 1)
    except (ValueError, ZeroDivisionError):
        return None
