"""Rows as examples, with a count of those that cannot become one."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from potstill.data import policies
from potstill.data.lost import SILENT_SHARE, Lost
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.types import Example

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Encoded:
    """Examples, counts, and the length in tokens of every example, dropped ones too.

    `funnel` counts rows, dropped examples (broken, too_long, foreign_ids, no_target), kept examples, rows
    `split` into several examples, and rows with `reasoning`.
    """

    examples: tuple[Example, ...]
    funnel: Mapping[str, int]
    lengths: tuple[int, ...]


def length_for(lengths: Sequence[int], share: float) -> int:
    """Find the smallest length that at least `share` of `lengths` do not exceed."""
    return sorted(lengths)[max(0, math.ceil(share * len(lengths)) - 1)]


def describe_lengths(lengths: Sequence[int]) -> str:
    """Say at which max_length half, most and all rows fit."""
    shares = ", ".join(f"{share:.0%} fit {length_for(lengths, share)}" for share in (0.5, 0.95, 1.0))
    return f"of the rows, {shares} tokens"


def encode(
    rows: Sequence[Row],
    templater: Templater,
    *,
    max_length: int | None,
    on_bad_row: Literal["error", "skip"] = "error",
    needed: bool = True,
    teacher: Templater | None = None,
    known_ids: int | None = None,
    room: int = 0,
) -> Encoded:
    """Tokenise rows. A row longer than `max_length` is dropped whole: no prompt and no answer is cut.

    A `teacher` that reads rows by a template of its own must print all of them too. With `known_ids` a row
    that holds an id from there on is dropped: the teacher, which is given the student's ids, has no such id.
    With `room` a row without an answer is a prompt, behind which the student may write so many tokens.

    Raises:
        DataError: a row cannot be encoded and `on_bad_row` is error; or examples are `needed` and none is
            left with a token to score.
    """
    funnel = Counter(rows=len(rows))
    examples: list[Example] = []
    lengths: list[int] = []
    first_problem = ""
    strange: Counter[int] = Counter()
    for row in rows:
        try:
            encoded = [prompt_of(templater, row, room)] if room and waits(row) else templater.encode_row(row)
            _require_readable(teacher, row)
        except DataError as error:
            if on_bad_row == "error":
                raise
            first_problem = first_problem or str(error)
            funnel["broken"] += 1
            continue
        funnel["split"] += len(encoded) > 1
        funnel["reasoning"] += _holds_reasoning(row)
        fit: list[Example] = []
        for example in encoded:
            lengths.append(example.planned[0])
            if max_length is not None and lengths[-1] > max_length:
                funnel["too_long"] += 1
            elif foreign := foreign_ids(example, known_ids):
                funnel["foreign_ids"] += 1
                strange.update(foreign)
            elif example.planned[1] == 0:
                funnel["no_target"] += 1
            else:
                fit.append(example)
        if len(fit) > 1:
            scored = sum(example.count for example in fit)
            fit = [replace(example, share=example.count / scored) for example in fit]
        examples += fit
    funnel["examples"] = len(examples)
    keys = ["rows", "broken", "too_long", "no_target", "examples", "split", "reasoning"]
    if known_ids is not None:
        keys.insert(3, "foreign_ids")
    result = Encoded(tuple(examples), {key: funnel[key] for key in keys}, tuple(lengths))
    if not examples and needed:
        raise _nothing_left(result, max_length, first_problem, describe_ids(templater, strange))
    _warn_of_two_habits(result.funnel)
    warn_of_foreign_ids(funnel["foreign_ids"], len(lengths), describe_ids(templater, strange))
    return result


def waits(row: Row) -> bool:
    """Whether a row is a prompt without an answer."""
    return bool(row.messages) and row.messages[-1]["role"] != "assistant"


def prompt_of(templater: Templater, row: Row, room: int) -> Example:
    """A row's prompt, with room for an answer of so many tokens.

    Raises:
        DataError: the row cannot be rendered; names its file and line.
    """
    with row.place_in_errors():
        ids = templater.prompt_ids(row.messages, row.tools)
    return Example(row.id, tuple(ids), (False,) * len(ids), room=room)


def foreign_ids(example: Example, known_ids: int | None) -> set[int]:
    """The ids of an example from `known_ids` on."""
    return set() if known_ids is None else {index for index in example.input_ids if index >= known_ids}


def describe_ids(templater: Templater, ids: Counter[int]) -> str:
    """Name the id that stands in most examples, with its token."""
    if not ids:
        return ""
    ((index, _),) = ids.most_common(1)
    return f"id {index} ({templater.token(index)!r})"


def warn_of_foreign_ids(count: int, total: int, example: str) -> None:
    """Say how many examples hold ids that the teacher does not have, where they are more than a few."""
    if count > SILENT_SHARE * total:
        log.warning(
            "%d of %d examples (%.0f%%) hold ids that the teacher does not have, most often %s; they are left out",
            *(count, total, 100 * count / total, example),
        )


def lost(parts: Sequence[Encoded], max_length: int | None) -> Lost:
    """Count what was left out of several parts of one data set."""
    funnel = sum((Counter(part.funnel) for part in parts), Counter[str]())
    lengths = [length for part in parts for length in part.lengths]
    reasons = {
        f"longer than max_length {max_length}": funnel["too_long"],
        "without a token to score": funnel["no_target"],
        "refused by the template": funnel["broken"],
    }
    return Lost(reasons, len(lengths) + funnel["broken"], describe_lengths(lengths) if lengths else "")


def _require_readable(teacher: Templater | None, row: Row) -> None:
    """Refuse a row of which the teacher's own template leaves something out."""
    if teacher is None:
        return
    try:
        teacher.require_printed(row)
    except DataError as error:
        raise DataError(
            f"as the teacher reads it, {error.message}", path=error.path, fix=error.fix
        ) from error


def _holds_reasoning(row: Row) -> bool:
    return any(m["role"] == "assistant" and policies.split_reasoning(m)[0] for m in row.messages)


def _nothing_left(encoded: Encoded, max_length: int | None, problem: str, foreign: str) -> DataError:
    funnel = encoded.funnel
    message = f"{funnel['rows']} of {funnel['rows']} rows have no target"
    if funnel["too_long"]:
        return DataError(
            f"{message}: {funnel['too_long']} are longer than max_length {max_length}.",
            path="data.max_length",
            value=max_length,
            fix=f"Raise data.max_length; {describe_lengths(encoded.lengths)}.",
        )
    if foreign:
        return DataError(
            f"{message}: {funnel['foreign_ids']} hold ids that the teacher does not have, most often {foreign}.",
            path="data.train",
            fix="If the chat template prints that token, name the teacher's in data.template.file; else train on "
            "the teacher's text (stages: generate, finetune).",
        )
    if funnel["broken"]:
        return DataError(f"{message}. {problem}", path="data.train", fix="Look at the first of these rows.")
    return DataError(f"{message}: no row has a token to score.", path="data.train", fix="Check the rows.")


def _warn_of_two_habits(funnel: Mapping[str, int]) -> None:
    if 0 < funnel["reasoning"] < funnel["rows"] - funnel["broken"]:
        log.warning(
            "%d of %d rows hold reasoning and the others none; the student learns both habits",
            *(funnel["reasoning"], funnel["rows"]),
        )
