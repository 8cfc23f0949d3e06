"""Whether a captured teacher holds the rows and the answers that a run reads of it: indices are read, and no weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from potstill.check.report import Item
from potstill.console import Console
from potstill.errors import PotstillError
from potstill.recipe.recipe import Recipe
from potstill.recipe.training import Training
from potstill.stages._captured import differences, heldout_of, lacking
from potstill.stages._context import Context, Setup, State
from potstill.stages._evaluated import not_comparable
from potstill.stages._later import require_answers
from potstill.stages._metrics import metrics_of
from potstill.stages.evaluate import Evaluate
from potstill.store.artifacts import Store
from potstill.teachers.cached import reading_of
from potstill.types import Example

NAME = "captured rows"


def items(
    recipe: Recipe,
    setup: Setup,
    train: Sequence[Example],
    validation: Sequence[Example] | None = None,
    heldout: Sequence[Example] = (),
) -> Iterator[Item]:
    """Look up every row that a training or an evaluation asks a captured teacher about; without one nothing.

    `validation` is not given where the rows have no answers yet.
    """
    teacher: Any = setup.teacher
    if getattr(teacher, "live", True) or not hasattr(teacher, "caches"):
        return
    if validation is None:
        yield Item(NAME, True, "not looked up; a stage of the run reads the answers first")
        return
    trains = any(isinstance(one, Training) and "distribution" in one.asks for one in recipe.stages)
    parts = list[tuple[str, Sequence[Example], Any]]()
    if trains:
        parts += [("training", train, teacher), ("validation", validation, teacher)]
    if _measures(recipe, setup, heldout):
        parts.append(("held-out", heldout, heldout_of(teacher)))
    counts, faults = list[str](), list[str]()
    for what, rows, of in parts:
        try:
            count, fault = looked_up(setup, what, rows, of)
        except PotstillError as error:
            yield Item(NAME, False, str(error))
            return
        counts += [count] if count else []
        faults += [fault] if fault else []
    if counts:
        yield Item(NAME, not faults, f"in the cache are {', '.join(counts)}{''.join(faults)}")


def looked_up(setup: Setup, what: str, rows: Sequence[Example], teacher: Any) -> tuple[str, str]:
    """How many rows are in the cache, and what is wrong with the others; "" for no row, and for nothing."""
    read = [row for row in rows if any(reading_of(row).scored)]
    if not read:
        return "", ""
    missing, first = 0, ""
    for row in read:
        absent = lacking(row, teacher)
        missing += bool(absent)
        never = next((cache for cache in absent if not cache.not_reached(reading_of(row))), None)
        if never is not None and not first:
            first = f"; {never.miss(row.id, differences(never, setup))}"
    count = f"{len(read) - missing} of {len(read)} {what} rows"
    if missing and not first:
        count += f" ({missing} were not captured before the deadline)"
        if what == "training" and missing == len(read):
            first = "; capture again with a later deadline"
    return count, first


def _measures(recipe: Recipe, setup: Setup, heldout: Sequence[Example]) -> bool:
    """Whether a stage compares models with the teacher's distribution on held-out rows."""
    wanted = (
        metric
        for stage in recipe.stages
        if isinstance(stage, Evaluate)
        for metric in metrics_of(stage.metrics, None if setup.task is None else setup.task.type)
    )
    scored = any("scores" in metric.needs for metric in wanted)
    return scored and not not_comparable(heldout_of(setup.teacher), setup.readers, heldout)


def answered(recipe: Recipe, setup: Setup) -> Iterator[Item]:
    """Whether a teacher that has left wrote the answers that an evaluation compares."""
    answered = getattr(setup.teacher, "facts", {}).get("answered")
    if not answered or not any(stage.measures for stage in recipe.stages):
        return
    context = Context(setup, Store(Path()), Console(quiet=True), recipe.seed, recipe.stages)
    try:
        require_answers(context, recipe.stages[0].name, State())
    except PotstillError as error:
        yield Item("teacher's answers", False, str(error))
    else:
        yield Item("teacher's answers", True, f"{answered} were written before it left")
