"""From a recipe to what it names: models found, tokenizers read, rows split. Loads no weights.

`check` and `run` both start here, so what the preflight reads is what the run reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from potstill.data.answers import domains_of, weights_of
from potstill.data.asked import differ
from potstill.data.reader import Reader, Readers, reader_of
from potstill.data.template import Templater
from potstill.devices import placement, ranks
from potstill.errors import RecipeError
from potstill.models import vocabulary
from potstill.models.loading import best_device
from potstill.recipe import plugins
from potstill.recipe.inputs import DataSpec
from potstill.recipe.recipe import Recipe, expand, read_recipe
from potstill.recipe.specs import Choice
from potstill.recipe.training import Training
from potstill.runs import engines, said, tracking
from potstill.runs.demands import require_provided
from potstill.runs.fits import require_keepable, require_plain_head
from potstill.runs.rows import mix_of, require_mixable
from potstill.runs.task import notes as task_notes
from potstill.runs.task import read_rows, read_task, read_text
from potstill.runs.teachers import average_for, build_teacher
from potstill.runs.together import require_together
from potstill.signals.teacher import Teacher
from potstill.stages._context import Setup, StudentRef
from potstill.stages._judging import try_filters
from potstill.stages._objective import objective_of
from potstill.stages._privileged import require_shown
from potstill.stages._strategy import try_strategy
from potstill.stages._verifying import require_rows
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill
from potstill.store.folder import RECIPE, RunDir
from potstill.students._built import StudentContext
from potstill.teachers._context import TeacherContext

LONGEST = 4096


@dataclass(frozen=True)
class Opened:
    """A recipe with the folder that its paths start from."""

    recipe: Recipe
    base: Path
    method: str | None = None  # the preset that the stages came from


def open_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Opened:
    """Read a recipe, or the one that a run folder holds; then the run goes on in that folder.

    Raises:
        RecipeError: it cannot be read, or something in it is wrong.
    """
    path = Path(path)
    if not path.is_dir():
        written = read_recipe(path, overrides)
        return Opened(expand(written), path.resolve().parent, written.method)
    if not (path / RECIPE).is_file():
        raise RecipeError(
            f"{path} is a folder without a {RECIPE}.", fix="Name a recipe file or a run folder."
        )
    place = path.resolve()
    base = RunDir(place).state().get("base", str(place))
    # A folder may have been copied or renamed; what is given is what is written.
    recipe = expand(read_recipe(place / RECIPE, [f"name={json.dumps(place.name)}", *overrides]))
    return Opened(recipe.model_copy(update={"runs": str(place.parent)}), Path(base))


def set_up(opened: Opened, date: datetime | None = None) -> Setup:
    """Find models, read tokenizers, configs and rows, and refuse what cannot work together.

    `date` is what templates print that print the date, when not given that of the run's first start.

    Raises:
        ModelError, VocabularyError, DataError, RecipeError: naming what does not fit and the way out.
    """
    recipe, base = opened.recipe, opened.base
    _require_plugins(recipe)
    date = date or RunDir(Path(recipe.runs) / recipe.name).date()
    apart = recipe.devices.apart
    placement.take(apart)
    device = best_device()
    template = _template_text(recipe.data, base)

    def reader(tokenizer: Any, end_ids: Sequence[int] = (), template: str | None = template) -> Reader:
        return reader_of(tokenizer, _templater(tokenizer, template, recipe.data, end_ids, date))

    context = TeacherContext(
        base,
        placement.of_teacher(apart, device),
        reader,
        recipe.devices.teacher == "sharded",
        device,
        average=average_for(recipe.stages),
    )
    teacher = build_teacher(recipe.teacher.plugin, context)
    require_provided(recipe, teacher)
    engines.require(recipe, teacher)
    require_together(recipe, teacher, ranks.world())
    student, student_reader, own_length = _student(recipe, base, device, teacher, template, reader)
    readers = Readers(teacher.reads, student_reader)
    compares = any("distribution" in stage.needs for stage in recipe.stages)
    for stage in recipe.stages:
        if isinstance(stage, Capture):
            require_keepable(recipe.stages, stage, teacher, partial=readers.partial)
    require_plain_head(recipe, teacher, student)
    if teacher.reads is not None and compares:
        vocabulary.require_shared(teacher.reads.vocabulary, student_reader.vocabulary)
    engines.require_same_ids(recipe, teacher, student_reader)
    lengths = (getattr(teacher, "context_length", None), own_length)
    context_length = min((length for length in lengths if length is not None), default=LONGEST)
    limit = recipe.data.max_length
    notes = list(said.of_reading(readers, recipe.data, context_length))
    if any(reader.templater.dated for reader in (teacher.reads, student_reader) if reader is not None):
        notes.append(
            f"a chat template prints the date or the time; this run prints {date:%Y-%m-%d %H:%M} in every row, "
            "also when it goes on on another day."
        )
    if student.template is not None and template is None:
        notes.insert(0, "the student has no chat template; it learns the teacher's.")
    route = getattr(teacher, "route", None)
    task = read_task(recipe, base)
    require_mixable(recipe)
    data = read_rows(recipe, base, task, notes, () if route is None else (route,))
    readers = replace(readers, same_prompts=not differ(data))
    engines.require_single_turns(recipe, teacher, student_reader, data)
    if recipe.data.weight is not None:
        weights_of(data.trained_on, recipe.data.weight)
    if route is not None:
        routed = data.everything + sum(data.mixed.values(), ())
        teacher.require_rows(list(domains_of(routed, route).values()))  # type: ignore[attr-defined]
    for stage in recipe.stages:
        if isinstance(stage, Distill):
            require_shown(stage, data)
        if getattr(stage, "verifier", None) is not None:
            require_rows(stage, data.train + data.validation, _loaded)
    _require_possible(student)
    notes += [
        *getattr(teacher, "notes", ()),
        *said.of_systems(readers, recipe.data, data),
        *said.of_overlap(data),
        *task_notes(task, data),
        *said.of_gold(recipe, data),
        *said.of_kept(recipe, teacher),
    ]
    return Setup(
        device=device,
        base=base,
        teacher=teacher,
        student=student,
        readers=readers,
        data=data,
        weight=recipe.data.weight,
        on_bad_row=recipe.data.on_bad_row,
        max_length=min(context_length, LONGEST if limit == "auto" else limit),
        context_length=context_length,
        notes=tuple(notes),
        devices=recipe.devices,
        date=date,
        data_seed=recipe.data.seed,
        mix=mix_of(recipe.data),
        compares=compares,
        domain=route,
        task=task,
    )


def _require_plugins(recipe: Recipe) -> None:
    """Import what the recipe names, and refuse options that plug-ins cannot take."""
    tracking.require(recipe.trackers)
    for stage in recipe.stages:
        for field in type(stage).model_fields:
            value = getattr(stage, field)
            for choice in value if isinstance(value, tuple | list) else [value]:
                if isinstance(choice, Choice):
                    path = f"stages.{stage.name}.{field}"
                    plugins.load(choice.family, choice.name, choice.options, path)
        if isinstance(stage, Training):
            objective_of(stage)
            try_strategy(stage)
        if getattr(stage, "filters", None):
            try_filters(stage, _loaded)


def _loaded(choice: Choice) -> Any:
    return plugins.load(choice.family, choice.name, choice.options)


def _student(
    recipe: Recipe, base: Path, device: Any, teacher: Teacher, template: str | None, reader: Any
) -> tuple[StudentRef, Reader, int | None]:
    """How the student is made and how it reads: as its plug-in says, else as the teacher does."""
    name, options = recipe.student.plugin
    plugin = plugins.load("students", name, options)
    context = StudentContext(
        teacher=getattr(teacher, "whole" if recipe.devices.teacher == "sharded" else "loaded", None),
        fingerprint=teacher.fingerprint,
        layers=getattr(teacher, "layers", None),
        base=base,
        device=device,
    )
    if not hasattr(plugin, "reads"):
        if teacher.reads is None:
            raise RecipeError(
                "reads as its teacher does, and this teacher has no tokenizer.",
                path="student",
                fix="Name a model of its own.",
            )
        width = getattr(teacher, "hidden_width", None)
        ref = StudentRef(plugin, name, options, context, cut=True, template=template, hidden_width=width)
        return ref, teacher.reads, None
    reads = plugin.reads(context, **options)
    if template is None and not reads.tokenizer.chat_template and teacher.reads is not None:
        template = teacher.reads.tokenizer.chat_template
    ref = StudentRef(
        plugin, name, options, context, cut=False, template=template, hidden_width=reads.hidden_width
    )
    return ref, reader(reads.tokenizer, reads.end_ids, template), reads.context_length


def _require_possible(student: StudentRef) -> None:
    check = getattr(student.plugin, "check", None)
    if check is not None:
        check(student.context, **student.options)


def _template_text(spec: DataSpec, base: Path) -> str | None:
    if spec.template is None or spec.template.file is None:
        return None
    return read_text(spec.template.file, "data.template.file", base)


def _templater(
    tokenizer: Any, template: str | None, spec: DataSpec, end_ids: Sequence[int], now: datetime
) -> Templater:
    templater = Templater(
        tokenizer,
        template_text=template,
        template_kwargs=dict(spec.template.kwargs) if spec.template else None,
        system=spec.system,
        reasoning=spec.reasoning,
        end_ids=end_ids,
        now=now,
    )
    file = None if spec.template is None else spec.template.file
    templater.require_bounded(file or str(tokenizer.name_or_path))
    return templater
