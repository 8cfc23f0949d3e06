"""From a recipe to what it names: models found, tokenizers read, rows split. Loads no weights.

`check` and `run` both start here, so what the preflight reads is what the run reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from potstill.data.answers import weights_of
from potstill.data.dataset import Dataset
from potstill.data.reader import Reader, Readers, reader_of
from potstill.data.template import Templater
from potstill.devices import placement
from potstill.errors import RecipeError
from potstill.models import vocabulary
from potstill.models.loading import best_device
from potstill.recipe import plugins
from potstill.recipe.inputs import DataSpec
from potstill.recipe.recipe import Recipe, expand, read_recipe, resolve_path
from potstill.recipe.specs import Choice
from potstill.recipe.training import Training
from potstill.runs import tracking
from potstill.runs.rows import read_data, rows_of_stages
from potstill.signals.teacher import Teacher
from potstill.stages._context import Setup, StudentRef
from potstill.stages._objective import objective_of
from potstill.stages._strategy import try_strategy
from potstill.store.folder import RECIPE, RunDir
from potstill.students._built import StudentContext
from potstill.teachers._context import TeacherContext

LONGEST = 4096
DISTRIBUTIONS = frozenset({"dense", "topk", "sampled"})


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

    name, options = recipe.teacher.plugin
    teacher: Teacher = plugins.load("teachers", name, options).build(
        TeacherContext(
            base, placement.of_teacher(apart, device), reader, recipe.devices.teacher == "sharded", device
        ),
        **options,
    )
    _require_provided(recipe, teacher)
    _require_engines(recipe, teacher)
    student, student_reader, own_length = _student(recipe, base, device, teacher, template, reader)
    readers = Readers(teacher.reads, student_reader)
    compares = any("distribution" in stage.needs for stage in recipe.stages)
    if teacher.reads is not None and compares:
        vocabulary.require_shared(teacher.reads.vocabulary, student_reader.vocabulary)
    lengths = (getattr(teacher, "context_length", None), own_length)
    context_length = min((length for length in lengths if length is not None), default=LONGEST)
    limit = recipe.data.max_length
    notes = list(_reading_notes(readers, recipe.data, context_length))
    if any(reader.templater.dated for reader in (teacher.reads, student_reader) if reader is not None):
        notes.append(
            f"a chat template prints the date or the time; this run prints {date:%Y-%m-%d %H:%M} in every row, "
            "also when it goes on on another day."
        )
    if student.template is not None and template is None:
        notes.insert(0, "the student has no chat template; it learns the teacher's.")
    data = read_data(recipe.data, base)
    data = replace(data, of_stages=rows_of_stages(recipe, base, data.heldout, notes))
    if recipe.data.weight is not None:
        weights_of(data.trained_on, recipe.data.weight)
    _require_possible(student)
    notes += [
        *_system_notes(readers, recipe.data, data),
        *_overlap_notes(data),
        *_gold_notes(recipe, data),
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
        compares=compares,
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


def _require_provided(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse stages that need more than the teacher says that it provides."""
    offers = {"distribution": bool(teacher.provides & DISTRIBUTIONS), "text": "text" in teacher.provides}
    for stage in recipe.stages:
        for need in sorted(stage.needs):
            if offers[need] and (need != "text" or teacher.reads is not None or hasattr(teacher, "engine")):
                continue
            what = {"distribution": "gives no distribution over tokens", "text": "writes no text"}[need]
            raise RecipeError(
                f"needs the teacher's {need}, and this teacher {what}.",
                path=f"stages.{stage.name}",
                fix="Leave the stage out, or name another teacher.",
            )


def _require_engines(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse a text engine that takes something else than the teacher reads: ids, or messages."""
    served = teacher.reads is None
    for stage in recipe.stages:
        engine = getattr(stage, "engine", "auto")
        if "text" in stage.needs and isinstance(engine, Choice):
            takes = getattr(plugins.load(engine.family, engine.name, engine.options), "TAKES", "ids")
            if (takes == "messages") != served:
                needs = "is asked over the network" if served else "has its weights here"
                raise RecipeError(
                    f"{engine.name} takes {takes}, and this teacher {needs}.",
                    path=f"stages.{stage.name}.engine",
                    fix="Leave engine out: each teacher brings its own.",
                )


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
        return StudentRef(plugin, name, options, context, cut=True, template=template), teacher.reads, None
    reads = plugin.reads(context, **options)
    if template is None and not reads.tokenizer.chat_template and teacher.reads is not None:
        template = teacher.reads.tokenizer.chat_template
    ref = StudentRef(plugin, name, options, context, cut=False, template=template)
    return ref, reader(reads.tokenizer, reads.end_ids, template), reads.context_length


def _require_possible(student: StudentRef) -> None:
    check = getattr(student.plugin, "check", None)
    if check is not None:
        check(student.context, **student.options)


def _reading_notes(readers: Readers, spec: DataSpec, context_length: int) -> list[str]:
    """What is worth a line about how both models read."""
    notes = []
    student, teacher = readers.student, readers.teacher
    if teacher is not None:
        notes += [
            f"special ids differ: {text}"
            for text in vocabulary.special_differences(teacher.vocabulary, student.vocabulary)
        ]
        if teacher.templater.fingerprint != student.templater.fingerprint:
            notes.append(
                "the chat templates of teacher and student differ; each reads a row through its own."
            )
        elif readers.shared_vocabulary and not readers.read_alike:
            notes.append(
                "teacher and student read a row as different ids by the same chat template; each is given its own."
            )
    if spec.max_length != "auto" and spec.max_length > context_length:
        notes.append(
            f"data.max_length is {spec.max_length}, the models read {context_length} tokens; that is the limit."
        )
    return notes


def _system_notes(readers: Readers, spec: DataSpec, data: Dataset) -> list[str]:
    """Which system prompts templates add of their own, and to how many rows."""
    rows = [row for row in (*data.trained_on, *data.heldout) if row.text is None]
    # A prompt that is merged into the user's turn, or dropped, is none to the template.
    without = sum(spec.system != "keep" or not row.has_system for row in rows)
    if not without:
        return []
    systems = {"the": readers.student.templater.default_system}
    if readers.teacher is not None and readers.teacher.templater.default_system != systems["the"]:
        systems["the teacher's"] = readers.teacher.templater.default_system
    return [
        f"{owner} chat template adds a system prompt of its own to the {without} of {len(rows)} rows "
        f"without one: {added!r}."
        for owner, added in systems.items()
        if added
    ]


def _gold_notes(recipe: Recipe, data: Dataset) -> Iterator[str]:
    """What becomes of answers that rows bring along where a stage lets the teacher write others."""
    writers = [index for index, stage in enumerate(recipe.stages) if "text" in stage.needs]
    if not writers:
        return
    stage = recipe.stages[writers[0]].name
    own = sum((parts.train + parts.validation for parts in data.of_stages.values()), ())
    trained = {(row.prompt_text, str(row.gold)) for row in own}
    rows = data.train + data.validation
    if any(s.trains and s.name not in data.of_stages for s in recipe.stages[: writers[0]]):
        rows = ()
    unused = sum(bool(row.gold) and (row.prompt_text, str(row.gold)) not in trained for row in rows)
    if unused:
        yield (
            f"{unused} of {len(rows)} training rows hold an answer that no stage trains on: after {stage} the "
            f"teacher's answers are trained on. Leave {stage} out to train on those of the rows."
        )
    measured = sum(bool(row.gold) for row in data.heldout)
    if measured and any(s.measures for s in recipe.stages[writers[0] :]):
        yield (
            f"{measured} of {len(data.heldout)} held-out rows hold an answer: texts are compared with it (vs "
            "gold) and with the teacher's (vs teacher); token by token, models are scored on the teacher's."
        )


def _overlap_notes(data: Dataset) -> list[str]:
    seen = {row.prompt_text for row in data.train + data.validation}
    both = sum(row.prompt_text in seen for row in data.heldout)
    if not both:
        return []
    return [
        f"{both} of {len(data.heldout)} held-out prompts are training prompts too; figures on them "
        "measure memory. Take them out of one of the two."
    ]


def _template_text(spec: DataSpec, base: Path) -> str | None:
    if spec.template is None or spec.template.file is None:
        return None
    path = resolve_path(base, spec.template.file)
    try:
        if path.exists() and not path.is_file():  # reading a pipe or a device has no end
            raise OSError("it is not a regular file")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot read {path}: {error}.", path="data.template.file", fix="Check the path."
        ) from error


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
