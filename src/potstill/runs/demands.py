"""What stages ask of a teacher, and what to say where it does not offer it."""

from __future__ import annotations

from typing import TypeGuard

from potstill.errors import RecipeError
from potstill.recipe.recipe import Recipe
from potstill.recipe.stages import StageSpec
from potstill.runs import engines
from potstill.runs.fits import require_comparable
from potstill.signals.teacher import Teacher
from potstill.stages._vectors import require_frozen
from potstill.stages._workers import require_workers
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill

DISTRIBUTIONS = frozenset({"dense", "topk", "sampled", "vector"})
# What a stage asks of a teacher, and what is wrong with one that does not offer it.
_WANTED = {
    "distribution": ("the teacher's distribution", "gives no distribution over tokens"),
    "live": ("a teacher that can be asked about any text", "is a cache, which knows the captured rows alone"),
    "text": ("the teacher's text", "writes no text"),
}


def require_provided(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse stages that need more than the teacher says that it provides."""
    offers = {
        "distribution": bool(teacher.provides & DISTRIBUTIONS),
        "live": getattr(teacher, "live", True),
        "text": "text" in teacher.provides,
    }
    captured, served = False, teacher.reads is None
    for stage in recipe.stages:
        _require_batchwise(stage, teacher, captured)
        if isinstance(stage, Capture):
            _require_capturable(stage, teacher)
        _require_beside(stage, teacher)
        if not captured:
            require_frozen(stage, teacher)
        for need in sorted(stage.asks):
            if need == "distribution" and engines.keeps_alternatives(recipe, stage):
                continue
            if offers[need] and (need != "text" or teacher.reads is not None or hasattr(teacher, "engine")):
                continue
            wanted, what = _WANTED[need]
            raise RecipeError(
                f"needs {wanted}, and this teacher {what}.",
                path=f"stages.{stage.name}",
                fix=getattr(teacher, f"way_to_{need}", "Leave the stage out, or name another teacher."),
            )
        if _compares(stage, captured) and not (served and engines.keeps_alternatives(recipe, stage)):
            require_comparable(stage, teacher)
        # What was captured before is of other text.
        captured = isinstance(stage, Capture) or (captured and "text" not in stage.needs)


def _compares(stage: StageSpec, captured: bool) -> TypeGuard[Distill]:
    """Whether a stage reads the signals of the run's own teacher."""
    own = isinstance(stage, Distill) and stage.self_teacher is None
    return own and not (captured and "live" not in stage.asks)


def _require_batchwise(stage: StageSpec, teacher: Teacher, captured: bool) -> None:
    """Refuse a stage that asks about one batch after the other where the teacher can be captured alone."""
    asks = "live" in stage.asks or (not captured and ("distribution" in stage.asks or stage.measures))
    if asks and not isinstance(stage, Capture) and not getattr(teacher, "batchwise", True):
        raise RecipeError(
            f"asks the teacher batch by batch, and {teacher.name} is read block by block.",
            path=f"stages.{stage.name}",
            fix="Capture its signals before this stage, or load it whole: teacher: {model: …}.",
        )


def _require_capturable(stage: Capture, teacher: Teacher) -> None:
    """Refuse a capture that would keep something else than what a later stage asks of the teacher."""
    require_workers(stage, teacher)
    if stage.deadline is not None and not getattr(teacher, "batchwise", True):
        raise RecipeError(
            f"has no effect: {teacher.name} is read block by block, and no row is ready before all of them are.",
            path=f"stages.{stage.name}.deadline",
            fix="Leave it out; after an interruption the same command goes on.",
        )
    if not hasattr(teacher, "members"):
        return
    each = "Capture each teacher in a recipe of its own, and list the caches: {ensemble: [{cache: A}, {cache: B}]}."
    if getattr(teacher, "combine", "") == "losses":
        raise RecipeError(
            "would keep the average of the teachers, and combine: losses compares with each of them.",
            path=f"stages.{stage.name}",
            fix=each,
        )
    if "dense" not in teacher.provides:
        raise RecipeError(
            "cannot keep what is put together from stored ids.", path=f"stages.{stage.name}", fix=each
        )


def _require_beside(stage: StageSpec, teacher: Teacher) -> None:
    """Refuse text that the teacher writes together with the student where it is no one model in this process."""
    if not isinstance(stage, Distill) or stage.self_teacher is not None or hasattr(teacher, "loaded"):
        return
    for name, value in (
        ("teacher_share", stage.strategy.teacher_share),
        ("proposals", stage.strategy.proposes),
    ):
        if value:
            raise RecipeError(
                f"lets {teacher.name} write beside the student, and it is no one model in this process.",
                path=f"stages.{stage.name}.strategy.{stage.strategy.name}.{name}",
                fix="Leave it out, so that the student writes alone, or take one teacher whose weights are here.",
            )
