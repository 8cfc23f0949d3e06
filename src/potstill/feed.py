"""What stages are fed: rows as prompts, answers as examples, held-out rows as questions."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from potstill.artifacts import Artifact
from potstill.compose import Parts
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError
from potstill.stages.evaluate import Question
from potstill.stages.generate import Prompt, Written, read
from potstill.types import Example

log = logging.getLogger("potstill")


@dataclass(frozen=True)
class Fed:
    """Examples, and how many rows or answers were left out, by reason."""

    examples: list[Example]
    funnel: Mapping[str, int] = field(default_factory=dict)


def prompt_ids(templater: Templater, row: Row) -> list[int]:
    """The row as a question to a model.

    Raises:
        DataError: names the row's file and line.
    """
    if row.text is not None:
        raise DataError(
            "this row is plain text, and a teacher answers prompts.",
            path=row.source or row.id,
            fix="Give rows with a prompt, or leave the generate stage out to train on the text itself.",
        )
    try:
        return templater.prompt_ids(row.prompt, list(row.tools) or None)
    except DataError as error:
        raise DataError(error.message, fix=error.fix, path=error.path or row.source or row.id) from error


def prompts(
    parts: Parts, rows: Sequence[Row], new_tokens: int, samples: int
) -> tuple[list[Prompt], Counter[str]]:
    """The rows as the teacher reads them, with room for `new_tokens`; one sample each of rows not trained on.

    Raises:
        DataError: a row cannot be asked and `on_bad_row` is error, or no prompt is left.
    """
    # Two answers to one prompt are not two prompts, so what is measured on has one.
    trained = {row.id for row in parts.data.train}
    room = parts.max_length - new_tokens
    found: list[Prompt] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        try:
            ids = prompt_ids(parts.teacher_templater, row)
        except DataError:
            if parts.recipe.data.on_bad_row == "error" or row.text is not None:
                raise
            left_out["prompt refused by the template"] += 1
            continue
        if len(ids) > room:
            left_out["prompt too long"] += 1
            continue
        found.append(Prompt(row.id, tuple(ids), samples if row.id in trained else 1))
    if rows and not found:
        raise DataError(
            f"none of the {len(rows)} prompts can be asked: "
            + ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            + f". max_length {parts.max_length} leaves {room} tokens beside {new_tokens} new ones.",
            path="data.max_length",
            fix="Raise max_length, or shorten the prompts.",
        )
    return found, left_out


def answered(parts: Parts, answers: Artifact, rows: Sequence[Row]) -> Fed:
    """The teacher's answers to these rows, in the student's ids, each ended as the student ends a turn.

    Ids cross over only between equal vocabularies; else the text does. What the teacher did not end gets
    no end token. An answer without a word is left out.

    Raises:
        DataError: every answer is empty.
    """
    by_id = {row.id: row for row in rows}
    templater = parts.student_templater
    found = []
    written = [answer for answer in read(answers) if answer.row_id in by_id]
    empty = 0
    for answer in written:
        ids = _student_ids(parts, answer)
        if not answer.text.strip():
            empty += 1
            continue
        prompt = prompt_ids(templater, by_id[answer.row_id])
        name = answer.row_id if answer.sample == 0 else f"{answer.row_id}#{answer.sample}"
        found.append(templater.generated(name, prompt, ids, "teacher", end=answer.finish == "stop"))
    if written and not found:
        raise DataError(
            f"all {len(written)} answers of the teacher are empty.",
            path="generate",
            fix="Look at the rendered prompts (potstill check): the template may end the answer at once.",
        )
    if empty:
        log.warning("%d of %d answers are empty and left out", empty, len(written))
    return Fed(found, {"empty answer": empty})


def weighed(parts: Parts, examples: Sequence[Example], rows: Sequence[Row]) -> list[Example]:
    """The examples with the weights that their rows name in the column `data.weight`.

    Raises:
        DataError: names a row whose weight is missing or is no number from 0 up.
    """
    column = parts.recipe.data.weight
    if column is None:
        return list(examples)
    weights = {}
    for row in rows:
        value = row.extra.get(column)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise DataError(
                f"the weight in the column {column!r} is {value!r}, not a number from 0 up.",
                path=row.source or row.id,
                fix="Repair the row, or leave data.weight out.",
            )
        weights[row.id] = float(value)
    found = []
    for example in examples:
        name = example.id if example.id in weights else example.id.rpartition("#")[0]
        found.append(replace(example, weight=weights[name]))
    if examples and not any(example.weight for example in found):
        raise DataError(f"every weight in the column {column!r} is 0.", path="data.weight")
    return found


def _student_ids(parts: Parts, answer: Written) -> list[int]:
    if not parts.shared_vocabulary:
        return parts.student_templater.text_ids(answer.text)
    ids = list(answer.ids)
    foreign = set(parts.teacher_templater.stop_ids) - set(parts.student_templater.stop_ids)
    return ids[:-1] if ids and answer.finish == "stop" and ids[-1] in foreign else ids


def questions(parts: Parts, examples: Sequence[Example], most: int) -> list[Question]:
    """The first held-out rows, each once, as prompt and first answer."""
    rows = {row.id: row for row in parts.data.heldout}
    found: dict[str, Question] = {}
    for example in examples:
        row = rows.get(example.id) or rows.get(example.id.rpartition("#")[0])
        if row is None or row.id in found or row.text is not None:
            continue
        if len(found) >= most:
            break
        first = example.scored.index(True)
        rest = example.scored[first:]
        length = rest.index(False) if False in rest else len(rest)
        answer = example.input_ids[first : first + length]
        text = parts.tokenizer.decode(
            list(answer), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        asked = example.input_ids[:first]
        teacher = asked if parts.reads_alike else tuple(_teacher_prompt(parts, row))
        found[row.id] = Question(
            row_id=row.id,
            prompt_ids=asked,
            teacher_prompt_ids=teacher,
            prompt=row.prompt_text,
            reference=text,
            reference_tokens=length,
            family=str(row.extra.get("family") or ""),
            unseen=bool(row.extra.get("unseen")),
        )
    return list(found.values())


def _teacher_prompt(parts: Parts, row: Row) -> list[int]:
    """The row's first question as the teacher reads it."""
    from potstill.data import chat

    return parts.teacher_templater.prompt_ids(chat.opening(row.messages), list(row.tools) or None)
