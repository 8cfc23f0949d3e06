"""A teacher's answers as examples, and the weights of examples."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from potstill.data import policies, split
from potstill.data.examples import describe_ids, foreign_ids, warn_of_foreign_ids
from potstill.data.prompts import FOREIGN, prompt_ids
from potstill.data.reader import Readers
from potstill.data.row import weight_in
from potstill.data.rows import Row
from potstill.data.task import NotValid, Task
from potstill.errors import DataError
from potstill.types import Example, Reading

log = logging.getLogger("potstill")

SHOWN = 3  # invalid answers in a warning
_HALF = "\ufffd"  # what a decoder writes for bytes that are no whole character


@dataclass(frozen=True)
class Written:
    """One answer: ids without the prompt, with the stop token when the teacher ended it (`stop`)."""

    row_id: str
    sample: int
    ids: tuple[int, ...]
    text: str
    finish: str


def encode_answers(
    readers: Readers,
    answers: Sequence[Written],
    rows: Sequence[Row],
    *,
    max_length: int,
    known_ids: int | None = None,
    task: Task | None = None,
    measured: bool = False,
) -> tuple[list[Example], Counter[str]]:
    """Turn the answers to these rows into examples in the student's ids, ended as the student ends a turn.

    Ids pass from teacher to student only where they mean the same to both; else the text is tokenised again.
    An answer that the teacher did not end gets no end token. Empty answers are left out, and answers that
    cannot follow the student's prompt with one reasoning block. What is no whole text does not cross: half a
    character, an id of the teacher alone that prints nothing, a word that the student's tokenizer does not
    have. With `known_ids` an example that holds an id from there on is left out.

    With a `task` an answer that is no valid one is left out, and the others are what the task trains on. Where
    they are `measured` invalid ones stay: prompts that a teacher fails at must not be missing.

    Returns:
        the examples, and how many answers were left out, by reason.

    Raises:
        DataError: no answer is left.
    """
    by_id = {row.id: row for row in rows}
    templater = readers.student.templater
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    strange: Counter[int] = Counter()
    invalid: list[str] = []
    answers = [answer for answer in answers if answer.row_id in by_id]
    for answer in answers:
        if not answer.text.strip():
            left_out["empty answer"] += 1
            continue
        row = by_id[answer.row_id]
        prompt = prompt_ids(templater, row)
        try:
            answer = _as_target(answer, task, measured)
            ids = _student_ids(readers, answer, row)
        except NotValid as error:
            left_out[error.reason] += 1
            invalid.append(f"{answer.row_id}: {error}")
            continue
        except DataError as error:
            left_out[error.message.rstrip(".")] += 1
            continue
        if not ids:
            left_out["empty answer"] += 1
            continue
        example = templater.generated(answer.row_id, prompt, ids, "teacher", end=answer.finish == "stop")
        if len(example.input_ids) > max_length:
            # The same words can be more tokens to the student than to the teacher.
            left_out["answer too long for the student"] += 1
            continue
        if foreign := foreign_ids(example, known_ids):
            left_out[FOREIGN] += 1
            strange.update(foreign)
            continue
        example = _with_reading(example, readers, row, len(prompt))
        if answer.sample:
            example = replace(example, id=f"{example.id}#{answer.sample}", part_of=example.id)
        examples.append(example)
    if answers and not examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise DataError(
            f"none of the teacher's {len(answers)} answers can be used: {reasons}.",
            path="generate",
            fix=f"The first: {invalid[0]}. Ask for what task wants in teacher.prompt, or change task."
            if invalid
            else "Look at the rendered prompts (potstill check): the template may end the answer at once.",
        )
    if invalid:
        few = "; ".join(invalid[:SHOWN])
        log.warning("%d of %d answers are invalid and left out: %s", len(invalid), len(answers), few)
    if empty := left_out["empty answer"]:
        log.warning("%d of %d answers are empty and left out", empty, len(answers))
    warn_of_foreign_ids(left_out[FOREIGN], len(answers), describe_ids(templater, strange))
    return examples, left_out


def _as_target(answer: Written, task: Task | None, measured: bool) -> Written:
    """The answer as it is trained on.

    Raises:
        NotValid: it is not what the task wants, and no measurement needs it all the same.
    """
    if task is None:
        return answer
    try:
        task.read(answer.text)
    except NotValid:
        if measured:
            return answer
        raise
    text = task.target(answer.text)
    return answer if text == answer.text else replace(answer, text=text, ids=())


def _with_reading(example: Example, readers: Readers, row: Row, start: int) -> Example:
    """The example with the teacher's reading, where it is asked in other words and its distribution counts."""
    if readers.same_prompts or not readers.comparable:
        return example
    theirs = tuple(prompt_ids(readers.teacher_reader.templater, row.for_teacher))
    ids, scored = theirs + example.input_ids[start:], (False,) * len(theirs) + example.scored[start:]
    return replace(example, reading=Reading(ids, scored))


def _student_ids(readers: Readers, answer: Written, row: Row) -> list[int]:
    """The answer's ids for the student, without an end token that only the teacher ends with.

    Raises:
        DataError: the answer cannot follow the student's prompt, or is no whole text to the student.
    """
    student, teacher = readers.student.templater, readers.teacher
    if teacher is None:
        return student.text_ids(_whole(answer))
    ids = list(answer.ids)
    if answer.finish == "stop" and ids and ids[-1] in set(teacher.stop_ids) - set(student.stop_ids):
        ids.pop()
    if readers.read_alike and ids:
        return ids
    theirs = teacher.templater.prompt_text(row.for_teacher.prompt, row.tools)
    ours = student.prompt_text(row.prompt, row.tools)
    text = policies.joined_block(theirs, ours, answer.text)
    foreign = readers.foreign(ids) if readers.comparable else []
    if ids and readers.comparable and not foreign and text == answer.text:
        return ids
    if any(not teacher.decode([index]) for index in foreign):
        raise DataError("a token of the teacher alone that prints nothing")
    ids = student.text_ids(_whole(replace(answer, text=text)))
    if readers.student.unknown_id in ids:
        raise DataError("a word that the student's tokenizer does not have")
    return ids


def _whole(answer: Written) -> str:
    """The answer's text without a character that its end cuts in half.

    Raises:
        DataError: half a character stands within the text.
    """
    text = answer.text if answer.finish == "stop" else answer.text.rstrip(_HALF)
    if _HALF in text:
        raise DataError("half a character in the answer")
    return text


def by_prompt(examples: Sequence[Example], rows: Sequence[Row]) -> list[Example]:
    """Make examples with one prompt parts of the first of them: answers to one prompt are not independent."""
    prompt = {row.id: split.normal(row.prompt_text) for row in rows}
    first: dict[str, str] = {}
    return [
        replace(example, part_of=first.setdefault(prompt[example.row_id], example.row_id))
        for example in examples
    ]


def with_weights(
    examples: Sequence[Example], rows: Sequence[Row], column: str | None, *, needed: bool = True
) -> list[Example]:
    """Give examples the weights that their rows hold in `column`; without a column they keep theirs.

    Where all weights are 0, nothing can be weighed: an error if examples are `needed`, else no weighing.

    Raises:
        DataError: a weight is missing or not a number from 0 up, naming the row; or all are 0.
    """
    if column is None:
        return list(examples)
    weights = weights_of(rows, column)
    result = [replace(example, weight=weights[example.row_id]) for example in examples]
    if not examples or any(example.weight for example in result):
        return result
    if not needed:
        return list(examples)
    raise DataError(f"the weight in the column {column!r} is 0 in every training row.", path="data.weight")


def with_domains(examples: Sequence[Example], rows: Sequence[Row], column: str | None) -> list[Example]:
    """Give examples what their rows hold in `column`, by which several teachers are chosen from."""
    if column is None:
        return list(examples)
    domains = domains_of(rows, column)
    return [replace(example, domain=domains[example.row_id]) for example in examples]


def domains_of(rows: Sequence[Row], column: str) -> dict[str, str]:
    """Read what each row holds in `column`, by its id.

    Raises:
        DataError: a row holds nothing there; names it.
    """
    domains = {}
    for row in rows:
        value = row.extra.get(column)
        if value is None or isinstance(value, dict | list) or not str(value):
            raise DataError(
                f"nothing in the column {column!r} says which teacher is asked about the row.",
                path=row.where,
                fix="Fill it in every row, or leave teacher.route out.",
            )
        domains[row.id] = str(value)
    return domains


def weights_of(rows: Sequence[Row], column: str) -> dict[str, float]:
    """Read the weight of each row, by its id.

    Raises:
        DataError: a weight is missing or not a number from 0 up; names the row.
    """
    weights = {}
    for row in rows:
        value = row.extra.get(column)
        weight = weight_in(value)
        if weight is None:
            raise DataError(
                f"the weight in the column {column!r} is {value!r}, not a number from 0 up.",
                path=row.where,
                fix="Repair the row, or leave data.weight out.",
            )
        weights[row.id] = weight
    return weights
