"""Rows whose teacher reads more than the student: the prompt with a row's answer, or a column, in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

from potstill.data import shapes
from potstill.data.dataset import Dataset
from potstill.data.lost import Lost
from potstill.data.reader import Reader
from potstill.data.row import Message, Row
from potstill.errors import DataError
from potstill.recipe.self_teaching import PROMPT, SHOWN, PrivilegedSpec
from potstill.stages._context import Setup
from potstill.stages._training_rows import TrainingRows
from potstill.stages.distill import Distill
from potstill.types import Example, Reading


def with_privileged(rows: TrainingRows, spec: Distill, setup: Setup) -> TrainingRows:
    """Give each row the reading of a teacher that is shown more; the rows themselves where none is.

    Of a conversation the last answer alone stays scored: the teacher is shown what belongs to that one. Rows whose
    reading does not fit the models are left out.

    Raises:
        DataError: a row has nothing to show, or too many do not fit.
    """
    if spec.privileged is None:
        return rows
    reader = setup.readers.student if spec.self_teacher is not None else setup.readers.teacher_reader
    shower = _Shower(spec.privileged, spec.name, reader, setup.readers.student, setup.data)
    mixed = (row for part in setup.data.mixed.values() for row in part)
    by_id = {row.id: row for row in (*setup.data.train, *setup.data.validation, *mixed)}
    train = [shower.shown(example, by_id[example.row_id]) for example in rows.train]
    validation = [shower.shown(example, by_id[example.row_id]) for example in rows.validation]
    kept = tuple(example for example in train if _length(example, spec) <= setup.context_length)
    validated = tuple(example for example in validation if example.width <= setup.context_length)
    lost = len(train) - len(kept) + len(validation) - len(validated)
    reason = f"too long for the teacher with what is shown ({setup.context_length} tokens with an answer)"
    Lost({reason: lost}, len(train) + len(validation)).refuse_many(setup.on_bad_row)
    if train and not kept:
        raise DataError(
            f"what is shown to the teacher fits none of the {len(train)} rows.",
            path=f"stages.{spec.name}.privileged",
            fix="Show less (a column), or lower max_new_tokens.",
        )
    return TrainingRows(kept, validated)


def require_shown(spec: Distill, data: Dataset) -> None:
    """Refuse rows whose column has no text that the teacher could be shown; of a mix, the rows of its files.

    Raises:
        DataError: names the first row.
    """
    if spec.privileged is not None and (column := spec.privileged.column) is not None:
        for row in sum(data.mixed.values(), ()) or data.train + data.validation:
            _in_column(column, row, data, spec.name)


def _in_column(column: str, row: Row, data: Dataset, stage: str) -> str:
    """The text of a column that is shown.

    Raises:
        DataError: it has none, or the row itself is read from the column.
    """
    value = row.extra.get(column)
    if isinstance(value, str) and value.strip():
        return value.strip()
    option = f"stages.{stage}.privileged.column"
    known = data.columns.get(column, column)
    if column not in row.extra and known in shapes.WITH_ANSWERS:
        raise DataError(
            f"{option} names {column!r}, which the row's own answer is read from.",
            path=row.where,
            fix="Leave column out (privileged: {}): then the row's answer is shown; behind a generate stage, the one that "
            "was written there. To show the file's own all the same, copy it into a column of another name.",
        )
    if column not in row.extra and known in shapes.ALL_COLUMNS:
        raise DataError(
            f"{option} names {column!r}, which the row itself is read from.",
            path=row.where,
            fix="Name another column, or leave column out (privileged: {}), which shows the row's answer.",
        )
    raise DataError(
        f"the column {column!r} holds {value!r}, and the teacher is to be shown text.",
        path=row.where,
        fix=f"Fill it, or leave {option} out.",
    )


def _length(example: Example, spec: Distill) -> int:
    """Most tokens that student and teacher read of a row: with what the student writes, and with the row's own answer
    where steps hold that too."""
    assert example.reading is not None
    written = len(example.reading.input_ids) - sum(example.reading.scored) + spec.new_tokens
    return max(written, example.width) if spec.reads_rows else written


@dataclass(frozen=True)
class _Shower:
    """Builds readings by a teacher's template."""

    spec: PrivilegedSpec
    stage: str
    teacher: Reader
    student: Reader
    data: Dataset

    def shown(self, example: Example, row: Row) -> Example:
        """The example with its reading: another prompt, and the same answer behind it."""
        begin = len(example.prompt)
        answer = example.input_ids[begin:]
        scored = (False,) * begin + example.scored[begin:]
        turns = list(self._prompt_of(example, row))
        turns[-1] = {**turns[-1], "content": self._text(str(turns[-1]["content"]), example, row)}
        with row.place_in_errors():
            prompt = tuple(self.teacher.templater.prompt_ids(turns, row.tools))
        reading = Reading((*prompt, *answer), (False,) * len(prompt) + scored[begin:])
        return replace(example, scored=scored, reading=reading)

    def _prompt_of(self, example: Example, row: Row) -> Sequence[Message]:
        """The turns before the example's last answer.

        Raises:
            DataError: they do not end with a turn of the user.
        """
        answers = [place for place, turn in enumerate(row.messages) if turn["role"] == "assistant"]
        for end in (len(row.messages), *reversed(answers)):
            turns = row.messages[:end]
            if not turns or turns[-1]["role"] != "user":
                continue
            with row.place_in_errors():
                if tuple(self.student.templater.prompt_ids(turns, row.tools)) == example.prompt:
                    return turns
        raise DataError(
            "its last answer follows no turn of the user, where a teacher could be shown more.",
            path=row.where,
            fix=f"Leave the row out, or remove stages.{self.stage}.privileged.",
        )

    def _text(self, prompt: str, example: Example, row: Row) -> str:
        """The user's turn as the teacher reads it; neither part is read as a template."""
        before, _, after = self.spec.template.partition(PROMPT)
        shown = self._what(example, row)
        return before.replace(SHOWN, shown) + prompt + after.replace(SHOWN, shown)

    def _what(self, example: Example, row: Row) -> str:
        """What is shown beside the prompt.

        Raises:
            DataError: the row has nothing of the kind.
        """
        if self.spec.column is not None:
            return _in_column(self.spec.column, row, self.data, self.stage)
        begin = len(example.prompt)
        text = self.student.decode(list(compress(example.input_ids[begin:], example.scored[begin:])))
        if text.strip():
            return text.strip()
        raise DataError(
            "has no answer that the teacher could be shown.",
            path=row.where,
            fix="Give the rows answers, put a generate stage first, or name a column in "
            f"stages.{self.stage}.privileged.",
        )
