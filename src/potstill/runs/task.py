"""The recipe's task and prompts, from the files that it names, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.data import asked, task
from potstill.data.asked import Asked, Template
from potstill.data.dataset import Dataset
from potstill.data.task import Task
from potstill.errors import RecipeError
from potstill.recipe.asked import PromptSpec
from potstill.recipe.recipe import Recipe, resolve_path
from potstill.runs.rows import Columns, columns_of_stages, read_data, rows_of_mix, rows_of_stages
from potstill.stages._metrics import metrics_of


def read_text(name: str, key: str, base: Path) -> str:
    """The text of a file that a recipe names under `key`.

    Raises:
        RecipeError: it cannot be read.
    """
    path = resolve_path(base, name)
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device has no end
            raise OSError("it is not a regular file")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read {path}: {error}.", path=key, fix="Check the path.") from error


def read_task(recipe: Recipe, base: Path) -> Task | None:
    """The task with its schema.

    Raises:
        RecipeError: the schema cannot be used, a request would carry two of them, or a metric measures another type
            of task.
    """
    spec = recipe.task
    for stage in recipe.stages:
        if stage.measures:
            metrics_of(getattr(stage, "metrics", ()), None if spec is None else spec.type)
    if spec is None:
        return None
    schema = None
    if spec.schema_file is not None:
        schema = task.read_schema(read_text(spec.schema_file, "task.schema", base))
    if spec.rationale and schema is not None and spec.rationale not in schema.get("properties", {}):
        known = ", ".join(schema.get("properties", {})) or "none"
        message = f"the schema has no property {spec.rationale!r}."
        raise RecipeError(message, path="task.rationale", fix=f"It has {known}.")
    made = Task(
        type=spec.type,
        labels=spec.labels,
        schema=schema,
        gold=spec.gold,
        answer_after=spec.answer_after,
        rationale=spec.rationale,
        alone=spec.target == "answer",
        constrain=spec.response_format,
        tolerance=spec.tolerance,
    )
    extra: Any = getattr(recipe.teacher, "options", {}).get("extra_body") or {}
    if made.response_format is not None and isinstance(extra, dict) and "response_format" in extra:
        raise RecipeError(
            "is what task sends by itself.",
            path="teacher.extra_body.response_format",
            fix="Leave it out here, or write task.response_format: false.",
        )
    return made


def read_asked(side: str, spec: PromptSpec | None, base: Path) -> Asked | None:
    """The files of `teacher.prompt` or `student.prompt`.

    Raises:
        RecipeError: one cannot be read, or is no template.
    """
    if spec is None:
        return None
    alone = f"{side}.prompt"
    parts: dict[str, Template] = {}
    for part in ("user", "system"):
        if (name := getattr(spec, part)) is not None:
            key = alone if part == "user" and spec.system is None else f"{alone}.{part}"
            parts[part] = Template(read_text(name, key, base), key)
    made = Asked(**parts)
    _ = made.columns  # read here, so that a broken template is named before any row
    return made


def read_rows(
    recipe: Recipe, base: Path, made: Task | None, notes: list[str], used: Sequence[str] = ()
) -> Dataset:
    """The rows of the recipe and of its stages, with what both models are asked; `used` are columns that are read
    besides those of task, prompts and stages.

    Raises:
        RecipeError: a file of a prompt cannot be used, or stages cannot work with two prompts.
        DataError: rows cannot be read, or a file refuses one.
    """
    sides = {
        side: read_asked(side, getattr(spec, "prompt", None), base)
        for side, spec in (("teacher", recipe.teacher), ("student", recipe.student))
    }
    gold = None if made is None else made.gold
    for side in sides.values():
        asked.require_hidden(side, gold)
    read = [*([] if gold is None else [gold]), *columns_of_stages(recipe), *used]
    columns = Columns(read, asked.columns_of(sides.values()))
    data = read_data(recipe.data, base, notes, columns)
    data = rows_of_mix(recipe.data, base, data, notes, columns)
    data = replace(data, of_stages=rows_of_stages(recipe, base, data.heldout, notes, columns))
    for side in filter(None, sides.values()):
        asked.require_bounded(side, data.everything)
    left_out: list[str] = []
    skip = recipe.data.on_bad_row == "skip"
    data = asked.applied(data, sides["teacher"], sides["student"], left_out if skip else None)
    if left_out:
        notes.append(f"{len(left_out)} rows are left out, first {left_out[0]}")
    require_prompts(recipe, data)
    return data


def require_prompts(recipe: Recipe, data: Dataset) -> None:
    """Refuse stages that compare distributions over the rows' own answers where the models are asked differently.

    Raises:
        RecipeError: there is one.
    """
    if not asked.differ(data):
        return
    written = False
    for stage in recipe.stages:
        written = written or "text" in stage.needs
        if "distribution" in stage.needs and stage.trains and data.mixed:
            raise RecipeError(
                f"compares distributions, also on rows of {next(iter(data.mixed))}, whose answers the teacher reads behind "
                "no prompt of its own, and teacher.prompt and student.prompt differ.",
                path=f"stages.{stage.name}",
                fix="Leave that source out of data.mix, use finetune, or ask both in the same words.",
            )
        if "distribution" in stage.needs and not written:
            raise RecipeError(
                "compares distributions on the rows' own answers, and teacher.prompt and student.prompt differ.",
                path=f"stages.{stage.name}",
                fix="Put a generate stage before it: the teacher's answers are read by both models, each behind its "
                "own prompt. Or ask both in the same words.",
            )
        strategy = getattr(stage, "strategy", None)
        if "distribution" in stage.needs and strategy is not None and strategy.student_writes:
            raise RecipeError(
                "lets the student write, and teacher.prompt and student.prompt differ.",
                path=f"stages.{stage.name}.strategy",
                fix="Use strategy: offline, or ask both in the same words.",
            )


def _invalid_own(made: Task, data: Dataset) -> Iterator[str]:
    """How many answers of files that are trained on as they are the task calls invalid."""
    own = {stage: parts.train + parts.validation for stage, parts in data.of_stages.items()}
    for source, rows in {**data.mixed, **own}.items():
        problems = [problem for row in rows if row.gold and (problem := made.problem(row.gold["content"]))]
        if problems:
            yield (
                f"task: {len(problems)} of {len(rows)} rows of {source} hold an answer that is none by it ({problems[0]}); "
                "they are trained on as they are."
            )


def notes(made: Task | None, data: Dataset) -> Iterator[str]:
    """How many held-out rows hold a right answer.

    Raises:
        RecipeError: none has the column.
        DataError: a right answer is no valid one; names the row.
    """
    if made is None:
        return
    yield from _invalid_own(made, data)
    rows = data.heldout
    if made.gold is not None:
        right = sum(bool(made.gold_of(row)) for row in rows)
        if rows and not right:
            known = (
                ", ".join(dict.fromkeys(name for row in rows for name in row.extra))
                or "none beside the prompt"
            )
            raise RecipeError(
                f"no held-out row has the column {made.gold!r}.",
                path="task.gold",
                fix=f"The rows have {known}. A column that the format reads as the row's answer is gold already: "
                "leave task.gold out.",
            )
        yield f"task: {made.type}; {right} of {len(rows)} held-out rows hold the right answer in {made.gold!r}."
        return
    own = [row.gold["content"] for row in rows if row.gold]
    invalid = [text for text in own if made.problem(text)]
    if own:
        words = (
            f"; {len(invalid)} of these are no valid answer ({made.problem(invalid[0])})" if invalid else ""
        )
        yield f"task: {made.type}; {len(own)} of {len(rows)} held-out rows bring an answer along{words}."
    else:
        yield (
            f"task: {made.type}; no held-out row holds a right answer, so models are compared with the teacher "
            "alone (task.gold names a column that does)."
        )
