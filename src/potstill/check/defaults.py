"""What every `auto` of a recipe becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from potstill.devices import placement
from potstill.recipe.defaults import Default
from potstill.recipe.recipe import Recipe
from potstill.recipe.stages import StageSpec, resolve_auto
from potstill.stages._captured import is_whole
from potstill.stages._context import Setup
from potstill.stages._later import GIVES
from potstill.stages.capture import Capture


def stage_defaults(
    stages: Sequence[StageSpec], setup: Setup, of_stages: Mapping[str, Mapping[str, int]], new_tokens: int
) -> tuple[list[StageSpec], list[Default]]:
    """The stages without an `auto`, and what each became, by the sizes of the rows of each stage."""
    count = getattr(setup.student.plugin, "parameters", None)
    parameters = None if count is None else count(setup.student.context, **setup.student.options)
    resolved: dict[str, StageSpec] = {}
    captured: str | None = None
    chosen: list[Default] = []
    for stage in stages:
        stage, shared = stage.completed(stages, resolved)
        trained = any(earlier.trains for earlier in resolved.values())
        facts = setup.facts(
            untrained=stage.from_untrained or not trained,
            parameters=parameters,
            answer_tokens=new_tokens or None,
            sizes=of_stages[stage.name],
            whole=_is_whole(stage, setup, captured),
        )
        stage, defaults = resolve_auto(stage, facts)
        resolved[stage.name] = stage
        if isinstance(stage, Capture):
            captured = stage.signal
        chosen += [*shared, *defaults]
    return list(resolved.values()), chosen


def _is_whole(stage: StageSpec, setup: Setup, captured: str | None) -> bool:
    """Whether a stage reads the whole distribution of one teacher; a signal that a capture has yet to choose may be."""
    if getattr(stage, "self_teacher", None) is not None:
        return True
    if captured is not None and "live" not in stage.asks:
        return GIVES.get(captured, "dense") == "dense"
    return is_whole(setup.teacher)


def input_defaults(recipe: Recipe, setup: Setup) -> Iterator[Default]:
    """What `auto` becomes in the recipe's inputs."""
    dtype = getattr(setup.teacher, "dtype", None)
    if getattr(recipe.teacher, "dtype", None) == "auto" and dtype is not None:
        yield Default("teacher.dtype", str(dtype).removeprefix("torch."), f"for the {setup.device.type}")
    written = getattr(recipe.teacher, "options", {}).get("combine", "auto")
    if written == "auto" and (average := getattr(setup.teacher, "average", None)) is not None:
        yield Default("teacher.combine", *average)
    if getattr(recipe.student, "model", None) and getattr(recipe.student, "dtype", None) == "auto":
        yield Default("student.dtype", "float32", "a student is trained in it")
    data = recipe.data
    if data.format == "auto":
        yield Default("data.format", setup.data.shape.partition(":")[0], "by the columns of the first rows")
    if data.heldout is None and data.heldout_fraction == "auto":
        share = len(setup.data.heldout) / len(setup.data.everything)
        yield Default("data.heldout_fraction", share, "a tenth, 60 to 500 rows, and a third at most")
    if data.max_length == "auto":
        yield Default("data.max_length", setup.max_length, "as far as the models read, 4096 at most")
    devices = recipe.devices
    count = placement.processes(None if devices.processes == "auto" else devices.processes, devices.apart)
    if devices.processes == "auto":
        yield Default("devices.processes", count, f"one a GPU that trains, or one: {setup.device.type}")
    if devices.sharding == "auto":
        several = "ddp or fsdp", "by the size of the student, once it is made"
        yield Default("devices.sharding", *(several if count > 1 else ("none", "one process")))
