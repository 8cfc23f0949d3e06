"""A student that keeps its head: what a capture makes vectors of, and what a training compares with theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from potstill.cache.vectors import name_of
from potstill.devices import ranks
from potstill.errors import CacheMiss, RecipeError, SignalError
from potstill.models import anatomy, loading
from potstill.recipe.stages import StageSpec
from potstill.recipe.training import Training
from potstill.signals.vector import KlVector, require_linear
from potstill.stages._context import Context, State
from potstill.stages._module import Run
from potstill.stages._student import with_student
from potstill.store.artifacts import Artifact
from potstill.types import Head


@dataclass(frozen=True)
class FrozenHead:
    """The head that a student keeps, and what identifies it."""

    head: Head
    name: str


def frozen_head(state: State, context: Context, *, wanted: bool) -> FrozenHead | None:
    """The head of the student as the stages behind a capture find it; None where none is linear.

    Raises:
        SignalError: `wanted`, and it is not linear.
    """
    student = with_student(state, context).student
    assert student is not None
    head = _head_of(student, context.setup.readers.shared_ids)
    try:
        require_linear(head)
    except SignalError:
        if wanted:
            raise
        return None
    return FrozenHead(head, name_of(head))


def require_frozen(spec: StageSpec, teacher: Any) -> None:
    """Refuse a stage that trains the head beside a cache of vectors.

    Raises:
        RecipeError: it does.
    """
    reads = isinstance(spec, Training) and "distribution" in spec.asks and "live" not in spec.asks
    vectors = KlVector.kind in getattr(teacher, "provides", ()) and hasattr(teacher, "cache")
    if reads and vectors and not getattr(spec, "freeze_head", False):
        raise RecipeError(
            "is needed: what was captured serves a student that keeps its output layer (kl_vector).",
            path=f"stages.{spec.name}.freeze_head",
            fix="Set it, or capture with signal: hidden.",
        )


def require_head(run: Run) -> None:
    """Refuse to train a student beside vectors of another head.

    Raises:
        RecipeError: the stage trains the head.
        CacheMiss: the vectors were made with another one; names both.
    """
    teacher: Any = run.teacher
    if KlVector.kind not in getattr(teacher, "provides", ()) or not hasattr(teacher, "cache"):
        return
    require_frozen(run.spec, teacher)
    made = teacher.cache.header.setting["head"]
    here = ranks.by_first(lambda: name_of(_head_of(run.student, run.vocabulary)))
    if made != here:
        raise CacheMiss(
            f"{teacher.place} holds vectors of the student head {made[:16]}, and {run.spec.name} trains a student "
            f"with the head {here[:16]}.",
            fix="Capture again with this student, or capture with signal: hidden, which serves every student.",
        )


def _head_of(student: Artifact, vocabulary: int) -> Head:
    """The head of a stored student, in float32 and without its body."""
    source = loading.find_source(str(student.path / "student"))
    model = loading.load(source, dtype=torch.float32).model.requires_grad_(False)
    return anatomy.head_of(model, vocabulary, anatomy.head_form(model))
