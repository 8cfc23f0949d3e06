"""Models, device, vocabulary, rows and split, each in a line."""

from __future__ import annotations

from potstill.check.report import Item
from potstill.data import split
from potstill.recipe.recipe import Recipe
from potstill.stages._context import Setup


def items_of(recipe: Recipe, setup: Setup) -> list[Item]:
    """What the recipe names, as it was found."""
    data = setup.data
    seen = split.overlap(data.trained_on, data.heldout)
    dtype = getattr(setup.teacher, "dtype", None)
    precision = "" if dtype is None else f", {str(dtype).removeprefix('torch.')}"
    counts = ", ".join(f"{count} {name}" for name, count in data.funnel.items() if count)
    return [
        Item("teacher", True, getattr(setup.teacher, "about", "") or _named(recipe.teacher) + precision),
        Item("student", True, "cut from the teacher" if setup.student.cut else _named(recipe.student)),
        Item("device", True, setup.device.type),
        Item("vocabulary", True, _vocabulary(setup)),
        Item("rows", True, f"{data.shape}; {counts}"),
        Item("split", True, data.counts),
        Item(
            "overlap",
            seen.exact == 0,
            f"of {seen.of} held-out prompts {seen.exact} stand in training, {seen.near} nearly, "
            f"{seen.gram} share {split.GRAM} words in a row",
        ),
        Item("longest row", True, f"{setup.max_length} tokens may stand in a row"),
    ]


def _vocabulary(setup: Setup) -> str:
    """Which ids both models have, and which are left out where their distributions are compared."""
    shared, size = setup.readers.overlap, setup.readers.student.vocabulary.size
    if shared is None or not shared.compatible:
        return "not shared"
    if shared.whole:
        return f"{size} ids, shared"
    alone = {"teacher": shared.teacher_only, "student": shared.student_only}
    parts = [f"{count} of the {side} alone" for side, count in alone.items() if count]
    cut = "; both distributions are cut to the shared ids" if setup.compares else ""
    return f"{shared.size} ids, shared; {', '.join(parts)}{cut}"


def _named(spec: object) -> str:
    options = getattr(spec, "options", {})
    return str(
        getattr(spec, "model", None)
        or options.get("model")
        or options.get("cache")
        or getattr(spec, "name", "")
    )
