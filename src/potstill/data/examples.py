"""Rows to examples, with a count of what could not become one."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from potstill.data import policies
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.types import Example, Origin

log = logging.getLogger("potstill")

WORTH_SAYING = 0.01  # share of rows that may be dropped without a word


@dataclass(frozen=True)
class Encoded:
    """Examples, what became of the rows, and the length in tokens of every example made, dropped or not.

    `funnel`: rows; broken, too_long and no_target examples dropped; examples kept; `split` rows became
    several examples; `reasoning` rows hold reasoning.
    """

    examples: tuple[Example, ...]
    funnel: Mapping[str, int]
    lengths: tuple[int, ...]

    def length_for(self, share: float) -> int:
        """The smallest max_length at which `share` of the examples fit."""
        return length_for(self.lengths, share)


def length_for(lengths: Sequence[int], share: float) -> int:
    """The smallest length that at least `share` of `lengths` do not exceed."""
    return sorted(lengths)[max(0, math.ceil(share * len(lengths)) - 1)]


def encode(
    rows: Sequence[Row],
    templater: Templater,
    *,
    max_length: int | None,
    origin: Origin = "data",
    on_bad_row: Literal["error", "skip"] = "error",
    needed: bool = True,
) -> Encoded:
    """Tokenise rows. A row longer than `max_length` is dropped whole: no prompt and no answer is ever cut.

    Raises:
        DataError: a row cannot be encoded, or, where rows are `needed`, none is left with a token to score;
            says why.
    """
    funnel = Counter(rows=len(rows))
    examples: list[Example] = []
    lengths: list[int] = []
    first_problem = ""
    for row in rows:
        try:
            made = templater.encode_row(row, origin=origin)
        except DataError as error:
            if on_bad_row == "error":
                raise
            first_problem = first_problem or str(error)
            funnel["broken"] += 1
            continue
        funnel["split"] += len(made) > 1
        funnel["reasoning"] += _reasons(row)
        fit: list[Example] = []
        for example in made:
            lengths.append(len(example.input_ids))
            if max_length is not None and lengths[-1] > max_length:
                funnel["too_long"] += 1
            elif example.count == 0:
                funnel["no_target"] += 1
            else:
                fit.append(example)
        if len(fit) > 1:
            whole = sum(example.count for example in fit)
            fit = [replace(example, share=example.count / whole) for example in fit]
        examples += fit
    funnel["examples"] = len(examples)
    keys = ("rows", "broken", "too_long", "no_target", "examples", "split", "reasoning")
    encoded = Encoded(tuple(examples), {key: funnel[key] for key in keys}, tuple(lengths))
    if not examples and needed:
        raise _nothing_left(encoded, max_length, first_problem)
    _report(encoded, max_length)
    return encoded


def _reasons(row: Row) -> bool:
    return any(m["role"] == "assistant" and policies.split_reasoning(m)[0] for m in row.messages)


def _nothing_left(encoded: Encoded, max_length: int | None, problem: str) -> DataError:
    funnel = encoded.funnel
    message = f"{funnel['rows']} of {funnel['rows']} rows have no target"
    if funnel["too_long"]:
        return DataError(
            f"{message}: {funnel['too_long']} are longer than max_length {max_length}.",
            path="data.max_length",
            value=max_length,
            fix=f"{_lengths(encoded)} Raise data.max_length.",
        )
    if funnel["broken"]:
        return DataError(f"{message}. {problem}", path="data.train", fix="Look at the first of them.")
    return DataError(f"{message}: no row has a token to score.", path="data.train", fix="Check the rows.")


def _lengths(encoded: Encoded) -> str:
    shares = ", ".join(f"{share:.0%} fit {encoded.length_for(share)}" for share in (0.5, 0.95, 1.0))
    return f"Of the rows, {shares} tokens."


def _report(encoded: Encoded, max_length: int | None) -> None:
    funnel = encoded.funnel
    made = len(encoded.lengths)
    if funnel["too_long"] > WORTH_SAYING * made:
        log.warning(
            "%d of %d examples are longer than max_length %s and dropped. %s",
            *(funnel["too_long"], made, max_length, _lengths(encoded)),
        )
    if funnel["no_target"] > WORTH_SAYING * made:
        log.warning("%d of %d examples have no token to score and are dropped", funnel["no_target"], made)
    if 0 < funnel["reasoning"] < funnel["rows"] - funnel["broken"]:
        log.warning(
            "%d of %d rows hold reasoning and the others none; a student learns both habits",
            *(funnel["reasoning"], funnel["rows"]),
        )
