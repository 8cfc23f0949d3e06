"""What the models are asked in place of a row's own words: Jinja files that write its prompt."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potstill.data import trial
from potstill.data.dataset import Dataset, Parts
from potstill.data.row import SYSTEM, Message, Messages, Row
from potstill.errors import DataError, RecipeError

OF_A_ROW = ("prompt", "system", "messages")  # what a file is given beside the row's columns
_TRIED = 8  # rows that a file is tried on in a process of its own


@dataclass(frozen=True)
class Template:
    """One file; `key` is where the recipe names it."""

    text: str
    key: str

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns that it prints.

        Raises:
            RecipeError: it is no template.
        """
        try:
            return frozenset(meta.find_undeclared_variables(_environment().parse(self.text))) - set(OF_A_ROW)
        except TemplateError as error:
            raise RecipeError(f"is no Jinja template: {error}.", path=self.key, fix="Repair it.") from None

    @cached_property
    def _compiled(self) -> Any:
        return _environment().from_string(self.text)

    def render(self, row: Row) -> str:
        """What it writes of a row.

        Raises:
            DataError: it refuses the row, names a column that the row lacks, or writes too much; names the row.
        """
        try:
            text = self._compiled.render(given(row)).strip()
        except MemoryError:
            raise
        except Exception as error:  # a template runs code
            known = ", ".join([*OF_A_ROW, *row.extra])
            raise DataError(
                f"{self.key} cannot be written for this row: {str(error) or type(error).__name__}.",
                path=row.where,
                fix=f"It may print {known}.",
            ) from error
        if len(text) > trial.MOST:
            raise DataError(
                f"{self.key} writes more than {trial.MOST:,} characters for this row.",
                path=row.where,
                fix="Look for its loops and repetitions.",
            )
        return text


@dataclass(frozen=True)
class Asked:
    """How a model is asked: files that write the last turn of the user, the system prompt, or both."""

    user: Template | None = None
    system: Template | None = None

    @property
    def templates(self) -> list[Template]:
        return [template for template in (self.user, self.system) if template is not None]

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the files print."""
        return frozenset().union(*(template.columns for template in self.templates))

    def turns(self, row: Row) -> Messages:
        """The row's prompt in these words; all other turns stay as they are.

        Raises:
            DataError: a file refuses the row, or writes nothing where the user speaks; names the row.
        """
        turns = list(row.prompt)
        if self.user is not None:
            last = max(index for index, turn in enumerate(turns) if turn["role"] == "user")
            text = self.user.render(row)
            if not text:
                fix = "Write the row's prompt where nothing else stands: {{ prompt }}."
                raise DataError(f"{self.user.key} writes nothing for this row.", path=row.where, fix=fix)
            turns[last] = {**turns[last], "content": text}
        if self.system is not None:
            text = self.system.render(row)
            own: list[Message] = [{"role": "system", "content": text}] if text else []
            turns = own + [turn for turn in turns if turn["role"] not in SYSTEM]
        return tuple(turns)


def given(row: Row) -> dict[str, Any]:
    """What a file is given of a row."""
    said = [turn["content"] for turn in row.prompt if turn["role"] == "user"]
    system = "\n\n".join(turn["content"] for turn in row.prompt if turn["role"] in SYSTEM)
    own = {"prompt": said[-1] if said else "", "system": system, "messages": list(row.prompt)}
    return {**row.extra, **own}


def require_bounded(asked: Asked, rows: Sequence[Row]) -> None:
    """Try the files on a few rows, the longest among them, within limits on time, memory and text.

    Raises:
        DataError: a file needs more.
    """
    longest = sorted(rows, key=lambda row: -len(json.dumps(given(row), default=str)))[:_TRIED]
    inputs = [given(row) for row in longest]
    for template in asked.templates:
        trial.require_bounded(template.text, {}, template.key, inputs=inputs)


def require_hidden(asked: Asked | None, gold: str | None) -> None:
    """Refuse a file that prints the right answer.

    Raises:
        RecipeError: it does; names the file's key.
    """
    for template in () if asked is None else asked.templates:
        if gold in template.columns:
            raise RecipeError(
                f"prints {gold}, which holds the right answer (task.gold).",
                path=template.key,
                fix="A model that reads the answer shows nothing by giving it: take it out of the file.",
            )


def applied(
    data: Dataset, teacher: Asked | None, student: Asked | None, left_out: list[str] | None = None
) -> Dataset:
    """The rows with both models' prompts; rows are still compared by their own words.

    Rows that a file refuses are left out and told to `left_out`, where it is given.

    Raises:
        DataError: a row is plain text, or a file refuses it; names the row.
    """
    if teacher is None and student is None:
        return data

    def asked(rows: Sequence[Row], theirs: Asked | None = teacher) -> tuple[Row, ...]:
        made = []
        for row in rows:
            try:
                made.append(_asked(row, theirs, student))
            except DataError as error:
                if left_out is None:
                    raise
                left_out.append(str(error))
        return tuple(made)

    def own_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
        """Rows that a stage brings along: no teacher reads them, and documents have no prompt."""
        texts = tuple(row for row in rows if row.text is not None)
        return texts + asked([row for row in rows if row.text is None], None)

    own = {
        name: replace(parts, train=own_rows(parts.train), validation=own_rows(parts.validation))
        for name, parts in data.of_stages.items()
    }
    return replace(
        data,
        train=asked(data.train),
        validation=asked(data.validation),
        heldout=asked(data.heldout),
        of_stages=own,
        mixed={source: own_rows(rows) for source, rows in data.mixed.items()},
    )


def _asked(row: Row, teacher: Asked | None, student: Asked | None) -> Row:
    if row.text is not None:
        raise DataError(
            "this row is plain text, and teacher.prompt and student.prompt write prompts.",
            path=row.where,
            fix="Give rows with a prompt, or leave the files out.",
        )
    answer = row.messages[len(row.prompt) :]
    ours = row.prompt if student is None else student.turns(row)
    theirs = row.prompt if teacher is None else teacher.turns(row)
    return replace(
        row,
        messages=(*ours, *answer),
        teacher_turns=theirs if theirs != ours else (),
        own_words=row.prompt_text,
    )


def differ(parts: Dataset | Parts) -> bool:
    """Whether teacher and student are asked differently in any row."""
    return any(row.teacher_turns for row in (*parts.train, *parts.validation))


def columns_of(sides: Collection[Asked | None]) -> frozenset[str]:
    """The columns that any file prints."""
    return frozenset().union(*(side.columns for side in sides if side is not None))


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
