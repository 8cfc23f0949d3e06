"""Rows as prompts that a teacher answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from potstill.data.reader import Readers
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError

MEASURED, VALIDATION = "measured ", "validation "  # before the reason of a row that is not trained on
FOREIGN = "holds ids that the teacher does not have"


@dataclass(frozen=True)
class Prompt:
    """A prompt in the teacher's ids, and the number of answers to write."""

    row_id: str
    ids: tuple[int, ...]
    samples: int = 1


def prompt_ids(templater: Templater, row: Row) -> list[int]:
    """Render a row without its final answer as a model's prompt.

    Raises:
        DataError: the row cannot be rendered; names its file and line.
    """
    if row.text is not None:
        raise DataError(
            "this row is plain text, and a teacher answers prompts.",
            path=row.where,
            fix="Give rows with a prompt, or leave the generate stage out to train on the text itself.",
        )
    with row.place_in_errors():
        return templater.prompt_ids(row.prompt, row.tools)


def prompts(
    readers: Readers,
    rows: Sequence[Row],
    *,
    train_ids: Collection[str],
    heldout_ids: Collection[str],
    new_tokens: int,
    samples: int,
    max_length: int,
    on_bad_row: Literal["error", "skip"] = "error",
    known_ids: int | None = None,
) -> tuple[list[Prompt], Counter[str]]:
    """Turn rows into prompts that leave room for `new_tokens` in both models.

    Rows of `train_ids` get `samples` answers, the others one: two answers to a prompt are not two prompts,
    so what is measured on has one. A teacher without a reader gets the student's ids. With `known_ids` a
    prompt that has an id from there on for the student is left out: its answer could not be trained on.

    Returns:
        the prompts, and how many rows were left out, by reason; `MEASURED` stands before that of a held-out row and
        `VALIDATION` before that of a row of neither collection.

    Raises:
        DataError: a row cannot be rendered and `on_bad_row` is error, or no prompt is left.
    """
    room = max_length - new_tokens
    kept: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        purpose = "" if row.id in train_ids else MEASURED if row.id in heldout_ids else VALIDATION
        try:
            ids, student_ids = both_ids(readers, row)
        except DataError:
            if on_bad_row == "error" or row.text is not None:
                raise
            reason = "prompt refused by the template"
        else:
            strange = known_ids is not None and max(student_ids) >= known_ids
            if not strange and max(len(ids), len(student_ids)) <= room:
                kept.append(Prompt(row.id, tuple(ids), 1 if purpose else samples))
                continue
            reason = f"prompt {FOREIGN}" if strange else "prompt too long"
        left_out[purpose + reason] += 1
    if rows and not kept:
        whole = reasons(left_out)
        raise DataError(
            f"none of the {len(rows)} prompts can be asked: "
            + ", ".join(f"{count} {reason}" for reason, count in whole.items())
            + f". max_length {max_length} leaves {room} tokens beside {new_tokens} new ones.",
            path="data.max_length",
            fix="Lower max_new_tokens, raise data.max_length as far as the models read, or shorten the prompts."
            if whole["prompt too long"]
            else "Name the teacher's template in data.template.file, or look at the rows.",
        )
    return kept, left_out


def reasons(left_out: Counter[str]) -> Counter[str]:
    """Add up what was left out, whatever the rows are for."""
    return Counter(reason.removeprefix(MEASURED).removeprefix(VALIDATION) for reason in left_out.elements())


def both_ids(readers: Readers, row: Row) -> tuple[list[int], list[int]]:
    """The prompt as the teacher and as the student reads it."""
    if readers.teacher is None or readers.read_alike:
        ids = prompt_ids(readers.student.templater, row)
        return ids, ids
    return prompt_ids(readers.teacher.templater, row.for_teacher), prompt_ids(readers.student.templater, row)
