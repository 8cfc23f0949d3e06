"""Refuse what several processes cannot do together, before they start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from potstill.devices import jobs, placement
from potstill.errors import RecipeError
from potstill.recipe.devices import DevicesSpec
from potstill.recipe.recipe import Recipe
from potstill.recipe.training import Training
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill


def count(devices: DevicesSpec) -> int:
    """How many processes a run has: those of the job that started this one, else those that potstill starts."""
    asked = None if devices.processes == "auto" else devices.processes
    return jobs.processes() or placement.processes(asked, devices.apart)


def require_together(recipe: Recipe, teacher: Any, world: int) -> None:
    """Refuse a recipe that works in one process alone, where there are `world`.

    Raises:
        RecipeError: names the option and the way out.
    """
    for problem in _problems(recipe, teacher, world) if world > 1 else ():
        raise problem


def notes(recipe: Recipe, teacher: Any, world: int) -> Iterator[str]:
    """Which stages one process makes alone, and how several go on: an artifact that is there serves all of them."""
    for stage in recipe.stages if world > 1 else ():
        why = ""
        if isinstance(stage, Capture) and hasattr(teacher, "prepare"):
            why = f"{teacher.name} is read block by block in one process"
        elif isinstance(stage, Distill) and stage.strategy.option("engine") == "vllm":
            why = "vLLM starts in a process that trains alone"
        if why:
            yield (
                f"stages.{stage.name}: {why}, and this run has {world}. When it is this stage's turn, run with "
                f"devices.processes=1 --until {stage.name}; what stands before and behind it runs as it is."
            )


def _problems(recipe: Recipe, teacher: Any, world: int) -> Iterator[RecipeError]:
    if recipe.devices.sharding == "none" and any(isinstance(stage, Training) for stage in recipe.stages):
        yield RecipeError(
            f"none cannot train in {world} processes.", path="devices.sharding", fix="Use ddp or fsdp."
        )
    in_parts = recipe.devices.teacher == "sharded"
    captured = False
    for stage in recipe.stages:
        path = f"stages.{stage.name}"
        if in_parts and getattr(stage, "keep", None) and hasattr(teacher, "loaded"):
            yield RecipeError(
                f"needs one teacher whose weights are whole in this process, and {teacher.name} is none.",
                path=f"{path}.keep",
                fix="Leave it out: a capture asks the teacher. Or set devices.teacher: replicated.",
            )
        if isinstance(stage, Distill):
            reads = stage.self_teacher is None and "live" not in stage.asks and not captured
            if in_parts and reads and getattr(teacher, "remembers", False):
                yield RecipeError(
                    "cannot keep the signals of a teacher in parts.",
                    path="teacher.cache",
                    fix="Put a capture stage before the training, or leave cache out.",
                )
        captured = isinstance(stage, Capture) or (captured and "text" not in stage.needs)
