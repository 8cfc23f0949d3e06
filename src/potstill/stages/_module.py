"""The student as it is trained: backbone, head and objective in one module, whole or in parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from potstill.devices import ranks
from potstill.models import anatomy, loading, saving, shards
from potstill.objectives.fused import DEFAULT_CHUNK_BYTES
from potstill.train import packing, parallel
from potstill.train.step import StudentModule

if TYPE_CHECKING:
    from potstill.stages._train import Run

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    student = load_student(run, run.device).model
    if run.spec.packing:
        packing.prove(student, run.rows.train, run.pad_id)
    return parallel.wrap(_with_objective(run, student), run.sharding, student)


def _in_parts(run: Run) -> nn.Module:
    """Blocks, and what is around them, in as many parts as there are processes."""
    whole: Any = load_student(run).model if ranks.first() else None
    if run.spec.packing:
        ranks.by_first(lambda: packing.prove(whole, run.rows.train, run.pad_id))
    form = ranks.by_first(lambda: anatomy.head_form(whole))
    student = shards.empty_like(whole)
    module = parallel.wrap(_with_objective(run, student, form), "fsdp", student)
    weights = (
        {} if whole is None else {f"student.{name}": value for name, value in whole.state_dict().items()}
    )
    shards.fill(module, weights, run.device)
    return module


def _with_objective(run: Run, student: Any, form: anatomy.HeadForm | None = None) -> StudentModule:
    if run.spec.activation_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return StudentModule(
        student,
        run.vocabulary,
        form=form,
        autocast=DTYPES[run.spec.precision],
        chunk_bytes=getattr(run.spec, "chunk_bytes", DEFAULT_CHUNK_BYTES),
    )
