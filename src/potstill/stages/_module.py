"""One training, and the student as it is trained: backbone, head and objective in one module, whole or in parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from potstill.devices import ranks
from potstill.errors import RecipeError
from potstill.models import anatomy, loading, saving, shards
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.stages._captured import is_whole
from potstill.stages._context import Context
from potstill.stages._objective import Objective
from potstill.stages._terms import Beside
from potstill.stages._training_rows import TrainingRows
from potstill.store.artifacts import Artifact
from potstill.teachers._following import FollowingTeacher
from potstill.teachers.local import LocalTeacher
from potstill.train import packing, parallel
from potstill.train.step import StudentModule

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Run:
    """One training: a resolved stage, its student, rows, objective and teacher (None: text alone)."""

    spec: Training
    student: Artifact
    rows: TrainingRows
    objective: Objective
    teacher: Teacher | None
    steps: int
    context: Context
    sharding: parallel.Sharding = "none"

    @property
    def vocabulary(self) -> int:
        """Ids of the student's softmax: those that the teacher has too, or all for text alone."""
        readers = self.context.setup.readers
        return readers.student.vocabulary.size if self.teacher is None else readers.shared_ids

    @property
    def pad_id(self) -> int:
        readers = self.context.setup.readers
        return readers.student.pad_id if self.teacher is None else readers.padding

    @property
    def device(self) -> torch.device:
        return self.context.setup.device


def sharding_of(student: Artifact, context: Context) -> parallel.Sharding:
    """How the processes of this run train together.

    Raises:
        RecipeError: the recipe wants none of it, and there are several.
    """
    wanted = context.setup.devices.sharding
    if ranks.world() == 1:
        return "none"
    if wanted == "none":
        raise RecipeError(
            f"none cannot train in {ranks.world()} processes.",
            path="devices.sharding",
            fix="Use ddp or fsdp.",
        )
    if wanted != "auto":
        return wanted
    # Weights, gradients and two averages in float32.
    chosen, why = parallel.choose(16 * student.facts["params"], context.setup.device)
    context.console.say(f"{ranks.world()} processes, sharding {chosen}: {why}")
    return chosen


def load_student(run: Run, device: torch.device | str = "cpu") -> loading.Loaded:
    """The student that the training starts from, in float32.

    Raises:
        ModelError: its weights are out of the range of the format in which it is to be shipped.
    """
    source = loading.find_source(str(run.student.path / "student"))
    loaded = loading.load(source, dtype=torch.float32, device=device)
    saving.require_range(loaded.model, shipped(run))
    return loaded


def shipped(run: Run) -> torch.dtype:
    """The number format in which the student is shipped."""
    return DTYPES[run.spec.export_dtype] or torch.float32


def module_of(run: Run) -> nn.Module:
    """The module that is trained, with every process's part in place; with `packing` once that is proven right."""
    if run.sharding == "fsdp":
        return _in_parts(run)
    student = frozen(run, load_student(run, run.device).model)
    if run.spec.packing:
        packing.prove(student, run.rows.train, run.pad_id)
    return parallel.wrap(_with_objective(run, student), run.sharding, student)


def beside_of(run: Run) -> Beside:
    """What the terms of the objective read besides student and teacher."""
    reader = run.context.setup.readers.student
    return Beside(
        _before(run) if getattr(run.spec, "reference", None) is not None else None,
        run.sharding == "fsdp",
        DTYPES[run.spec.precision],
        tuple(sorted(set(reader.tokenizer.all_special_ids) - set(reader.stop_ids))),
        reader.decode,
    )


def _before(run: Run) -> Teacher:
    """A frozen copy of the student as this training starts from it."""
    model, form = _copy(run)
    return LocalTeacher(model, vocabulary=run.vocabulary, fingerprint=run.student.key, form=form)


def self_teacher(run: Run) -> FollowingTeacher | None:
    """The student as its own teacher, where the stage wants one."""
    wanted = getattr(run.spec, "self_teacher", None)
    if wanted is None:
        return None
    model, form = _copy(run)
    size = sum(4 * parameter.numel() for parameter in model.parameters()) / 1e9
    run.context.console.say(
        f"{run.spec.name}: the teacher is a copy of the student, {size:.1f} GB"
        + (" in parts" if run.sharding == "fsdp" else " in every process" if run.sharding == "ddp" else "")
        + " in memory and in each checkpoint"
    )
    return FollowingTeacher(
        model,
        rate=wanted.rate,
        every=wanted.every,
        vocabulary=run.vocabulary,
        fingerprint=run.student.key,
        form=form,
        autocast=DTYPES[run.spec.precision],
    )


def _copy(run: Run) -> tuple[Any, anatomy.HeadForm | None]:
    """Another copy of the student: whole, or in parts where the student is, and then the form of its head."""
    if run.sharding != "fsdp":
        return load_student(run, run.device).model, None
    return shards.in_blocks(load_student(run).model if ranks.first() else None, run.device)


def _in_parts(run: Run) -> nn.Module:
    """Blocks, and what is around them, in as many parts as there are processes."""
    whole: Any = load_student(run).model if ranks.first() else None
    if run.spec.packing:
        ranks.by_first(lambda: packing.prove(whole, run.rows.train, run.pad_id))
    form = ranks.by_first(lambda: anatomy.head_form(whole))
    student = frozen(run, shards.empty_like(whole))
    module = parallel.wrap(_with_objective(run, student, form), "fsdp", student)
    weights = (
        {} if whole is None else {f"student.{name}": value for name, value in whole.state_dict().items()}
    )
    shards.fill(module, weights, run.device)
    return module


def frozen(run: Run, student: Any) -> Any:
    """The student with what this stage does not train taken out."""
    if run.spec.freeze_head:
        anatomy.output_layer(student).requires_grad_(False)
    return student


def _with_objective(run: Run, student: Any, form: anatomy.HeadForm | None = None) -> StudentModule:
    if run.spec.activation_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compiles = getattr(run.spec, "compile", False) is True
    if compiles and not is_whole(run.teacher):
        compiles = False
        run.context.console.warn(
            f"{run.spec.name}.compile: the loss runs as it is: only a whole distribution of one teacher is compiled."
        )
    if compiles:
        run.context.console.say(
            f"{run.spec.name}: compiling the loss, once, in the first step (some seconds)"
        )
    return StudentModule(
        student,
        run.vocabulary,
        form=form,
        autocast=DTYPES[run.spec.precision],
        chunk_bytes=getattr(run.spec, "chunk_bytes", None),
        compile=compiles,
    )
