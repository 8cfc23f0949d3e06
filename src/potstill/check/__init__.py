"""The preflight: reads everything that a run reads, trains nothing, and proves the laws it relies on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from potstill.check import reading
from potstill.check.report import CheckReport
from potstill.console import Console
from potstill.runs import together
from potstill.runs.setup import open_recipe, set_up

__all__ = ["CheckReport", "check"]


def check(
    recipe: str | Path, overrides: Sequence[str] = (), *, proofs: bool = True, console: Console | None = None
) -> CheckReport:
    """Resolve a recipe, read its tokenizers, configs and rows, and say what a run would do.

    Args:
        proofs: also load the models and prove gradients, self-teacher, accumulation and saving on the
            recipe's own rows. Without it no weight is loaded.

    Raises:
        PotstillError: the recipe, the data or a model cannot work; the error says how to go on.
    """
    console = console or Console()
    console.say("reading recipe, tokenizers, configs and rows")
    opened = open_recipe(recipe, overrides)
    setup = set_up(opened)
    world = together.count(opened.recipe.devices)
    together.require_together(opened.recipe, setup.teacher, world)
    report, rows, amounts = reading.read(opened, setup)
    alone = together.notes(opened.recipe, setup.teacher, world)
    report = replace(report, notes=(*report.notes, *alone))
    if not proofs:
        return report
    from potstill.check.proofs import prove

    proven = []
    for item in prove(opened.recipe, setup, rows, amounts, console):
        console.say(f"{item.mark} {item.name}")
        proven.append(item)
    return replace(report, items=(*report.items, *proven))
