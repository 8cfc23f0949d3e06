"""Train a student and leave an artifact: the best weights seen at a validation, and every step's metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.devices import ranks
from potstill.errors import Interrupted
from potstill.models import generation, loading, saving
from potstill.recipe.defaults import settled
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.stages._artifact import produce
from potstill.stages._context import Context, State
from potstill.stages._module import (
    Run,
    beside_of,
    frozen,
    load_student,
    module_of,
    self_teacher,
    sharding_of,
    shipped,
)
from potstill.stages._objective import Objective, objective_of, require_signal, yardstick
from potstill.stages._own_text import guards_of, look_at_student, own_kl, with_closeness
from potstill.stages._said import look_at_teacher, say_where, say_worse
from potstill.stages._strategy import identity_of, strategy_of, teacher_of, writer_of
from potstill.stages._training_rows import TrainingRows
from potstill.stages._vectors import require_head
from potstill.store.artifacts import Artifact
from potstill.store.lines import read_lines
from potstill.train import packing, parallel
from potstill.train.checkpoint import student_tensors
from potstill.train.folder import METRICS, TrainingFolder
from potstill.train.loop import Hooks, Progress, plan_epoch, train
from potstill.train.optimizer import make_optimizer
from potstill.train.step import StudentModule
from potstill.train.validation import Validation
from potstill.types import Example

VERSION = 2  # raised when training changes its meaning


def train_student(
    spec: Training, state: State, rows: TrainingRows, context: Context, teacher: Teacher | None = None
) -> Artifact:
    """Train the student on `rows`, against `teacher` or by cross-entropy on the text alone."""
    student = state.untrained if spec.from_untrained else state.student
    assert student is not None
    if spec.validation_rows != "auto":
        rows = rows.validated_on(spec.validation_rows)
    objective = objective_of(spec)
    if teacher is not None:
        require_signal(objective, spec.name, teacher.provides)
    run = Run(
        spec,
        student,
        rows,
        objective,
        teacher,
        steps_of(spec, rows.train, context.seed),
        context,
        sharding_of(student, context),
    )
    inputs = {
        "version": VERSION,
        "student": student.key,
        "teacher": None if teacher is None else teacher.fingerprint,
        "data": rows.key,
        # They choose which weights are kept.
        "validation": [[e.id, e.input_ids, e.scored, e.weight] for e in rows.validation],
        "loss": objective.identity,
        "strategy": identity_of(spec),
        "settings": spec.identity() | {"steps": run.steps, "seed": context.seed},
        "stop_ids": context.setup.readers.student.stop_ids,
    }
    if spec.normalize == "sequence_mean":
        inputs["validated"] = "by row"  # earlier artifacts counted every token of it alike
    if spec.best_by == "own_kl":
        inputs["answered"] = "short and long"  # earlier artifacts had answers to the shortest rows alone
    for name in ("self_teacher", "privileged"):
        if (chosen := getattr(spec, name, None)) is not None:
            inputs[name] = chosen.model_dump(mode="json")
    if getattr(spec, "privileged", None) is not None:
        shown = (*rows.train, *rows.validation)
        inputs["readings"] = [[e.id, None if e.reading is None else e.reading.input_ids] for e in shown]
    trained = produce(context, "train", spec.name, inputs, lambda folder: _build(run, folder), together=True)
    context.announce({"training": None})
    if trained.reused and ranks.first():
        for event in read_lines(trained.path / METRICS):
            context.track(spec.name, event)
    return trained


def steps_of(spec: Training, rows: Sequence[Example], seed: int) -> int:
    """Optimizer steps in all: as the stage says, or as many as its epochs have."""
    if spec.steps is not None:
        return spec.steps
    assert spec.epochs is not None
    whole, part = divmod(spec.epochs, 1)
    planned = [len(plan_epoch(spec, rows, seed, epoch)) for epoch in range(int(whole) + 1)]
    return max(1, spec.passes * (sum(planned[:-1]) + round(part * planned[-1])))


def _build(run: Run, path: Path) -> Mapping[str, Any]:
    spec, console, folder = run.spec, run.context.console, TrainingFolder(path)
    torch.manual_seed(run.context.seed)
    if (own := self_teacher(run)) is not None:
        run.context.setup.teacher.close()
        run, folder = replace(run, teacher=own), replace(folder, beside=own.tensors)
    require_head(run)
    look_at_teacher(run)
    teachers: Sequence[Any] = getattr(run.teacher, "teachers", (run.teacher,))
    for one in teachers if spec.packing and own is None else ():
        if hasattr(one, "loaded"):
            packing.prove(one.loaded().model, run.rows.train, run.pad_id)
    module = module_of(run)
    objective = replace(run.objective, beside=beside_of(run))
    optimizer = make_optimizer(module, spec)
    folder = replace(folder, holds=_holds_best(run, module))
    progress, threads = folder.resume(module, optimizer)
    folder.require_room(module)
    say_where(run, progress, threads)
    run.context.announce({"training": {"metrics": str(folder.metrics.resolve()), "steps": run.steps}})

    def log(event: Mapping[str, Any]) -> None:
        folder.log(event)
        run.context.track(spec.name, event)

    for past in folder.events() if ranks.first() else ():  # of the process before
        run.context.track(spec.name, past)
    few = {"rows": len(run.rows.validation)}
    strategy = strategy_of(spec)
    teacher = teacher_of(run, strategy)
    writer = writer_of(run, objective, module, teacher, path)
    validation = _validation(run, objective)

    def validate() -> Mapping[str, float]:
        own = {"own_kl": own_kl(run, module, writer)} if spec.best_by == "own_kl" else {}
        return {**validation(module), **own}

    # A strategy may have collected rows before the first step.
    begins = progress.step == 0 and not progress.strategy
    if begins and run.rows.validation:
        before = validate()
        log({"event": "validation", "step": 0, "best": False, **few, **before})
        strategy.validated(before)
        progress.strategy = strategy.state()
    if begins:
        look_at_student(run, module, writer, log)

    def stepped(step: int) -> None:
        writer.stepped()
        if own is not None:
            own.follow(student_tensors(module), step)

    with console.bar(spec.name, run.steps, progress.step) as bar:
        last = ""

        def event(values: Mapping[str, Any]) -> None:
            nonlocal last
            if values["event"] == "validation":
                last = f" · validation {values['loss']:.3f} ({few['rows']} rows)"
                log({**values, **few})
                return
            log(values)
            if values["event"] != "step":
                return
            rate = values["tokens"] / max(values["seconds"], 1e-9)
            bar.update(values["step"], f"loss {values['loss']:.3f} · {rate:.0f} tok/s{last}")

        progress = train(
            module,
            run.rows.train,
            teacher,
            strategy,
            writer,
            lambda step: with_closeness(spec, objective.terms(step, run.steps)),
            spec.model_copy(update={"steps": run.steps}),
            Hooks(
                event=event,
                validate=validate if run.rows.validation else None,
                keep_best=partial(folder.save_best, module),
                save=partial(folder.save, module),
                should_stop=lambda: bool(run.context.stop_signal()),
                stepped=stepped,
            ),
            seed=run.context.seed,
            optimizer=optimizer,
            progress=progress,
            guards=guards_of(run),
        )
    writer.close()
    if teacher is not None:
        teacher.close()
    if (number := ranks.highest(run.context.stop_signal())) and progress.step < run.steps:
        raise Interrupted(
            f"{spec.name} stopped at step {progress.step} of {run.steps}; a checkpoint is saved.",
            signal_number=number,
        )
    if not ranks.first():
        return {}
    say_worse(run, folder.events())
    sizes = _export(run, folder, module, path / "student")
    return _facts(progress) | {"validation_rows": len(run.rows.validation)} | sizes


def _holds_best(run: Run, module: nn.Module) -> bool:
    """Whether the best weights wait in memory: where steps are short, and where they take none of a step's own."""
    return run.sharding != "fsdp" and next(module.parameters()).device.type != "cpu"


def _export(run: Run, folder: TrainingFolder, module: nn.Module, place: Path) -> dict[str, Any]:
    """Write the student with its best weights, rounded to its number format, and return its sizes and format."""
    loaded = load_student(run) if run.sharding == "fsdp" else None  # only a part of it is here
    whole = (
        parallel.unwrap(module)
        if loaded is None
        else StudentModule(frozen(run, loaded.model), run.vocabulary)
    )
    folder.take_best(whole)
    student: Any = whole.student
    reader = run.context.setup.readers.student
    student.generation_config = generation.settings_for(student, reader.stop_ids, reader.pad_id)
    tokenizer = loading.load_tokenizer(loading.find_source(str(run.student.path / "student")))
    return saving.save(student.cpu(), tokenizer, place, shipped(run)) | {"dtype": run.spec.export_dtype}


def _validation(run: Run, objective: Objective) -> Validation:
    return Validation(
        rows=run.rows.validation,
        teacher=run.teacher,
        objective=objective.validated(run.steps),
        yardstick=None if run.teacher is None else yardstick(),
        tokens=settled(run.spec.micro_batch_tokens),
        pad_id=run.pad_id,
        before_batch=run.context.stop_together,
        by_row=run.spec.normalize == "sequence_mean",
    )


def _facts(progress: Progress) -> dict[str, Any]:
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": progress.seconds,
        "tokens_per_second": progress.tokens / max(progress.seconds, 1e-9),
        "best_step": progress.best_step,
        "best_loss": None if math.isinf(progress.best) else progress.best,
    }
