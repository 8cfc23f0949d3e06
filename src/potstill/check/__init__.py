"""The preflight: reads everything that a run reads, trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from potstill import compose
from potstill.check import reading
from potstill.check.report import CheckReport
from potstill.console import Console

__all__ = ["CheckReport", "check"]


def check(
    recipe: str | Path, overrides: Sequence[str] = (), *, console: Console | None = None
) -> CheckReport:
    """Resolve a recipe, read its tokenizers, configs and rows, and say what a run would do.

    Raises:
        PotstillError: the recipe, the data or a model cannot work; the error says how to go on.
    """
    console = console or Console()
    console.say("reading recipe, tokenizers, configs and rows")
    parts = compose.compose(compose.open_recipe(recipe, overrides))
    return reading.read(parts)
