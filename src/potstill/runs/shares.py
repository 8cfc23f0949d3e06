"""A share of a capture: one of several runs that write parts of the same cache side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from potstill.console import Console
from potstill.errors import RecipeError
from potstill.recipe.stages import run_of
from potstill.runs import setup
from potstill.stages import _capture, _rows
from potstill.stages._context import Context, State
from potstill.stages.capture import Capture
from potstill.store.artifacts import Store
from potstill.store.folder import RunDir


def read_share(text: str) -> tuple[int, int]:
    """The share that `i/n` names, i counted from 1, as (i - 1, n).

    Raises:
        RecipeError: it names none.
    """
    match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    number, of = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= of:
        raise RecipeError(
            f"{text!r} is no share.",
            path="--shard",
            fix="Write 1/3, 2/3 and 3/3 for three runs side by side.",
        )
    return number - 1, of


def capture_share(
    recipe: str | Path, overrides: Sequence[str], share: tuple[int, int], console: Console
) -> str:
    """Run the stages before the recipe's capture, then write a share of its cache; what to do next, in words.

    The run's folder belongs to nobody meanwhile: as many of these may work on it as there are shares.

    Raises:
        RecipeError: the recipe has no capture stage.
    """
    opened = setup.open_recipe(recipe, overrides)
    stages = opened.recipe.stages
    captures = [index for index, stage in enumerate(stages) if isinstance(stage, Capture)]
    if not captures:
        raise RecipeError(
            "the recipe has no capture stage.", path="stages", fix="Add `- capture` to its stages."
        )
    folder = RunDir(Path(opened.recipe.runs) / opened.recipe.name)
    folder.create()
    store = Store(folder.store_root(), run=folder.path)
    parts = setup.set_up(opened)
    context = Context(parts, store, console, seed=opened.recipe.seed, stages=stages)
    with store.in_use():
        state = State()
        _rows.require_rows(stages[: captures[0] + 1], context)
        for stage in stages[: captures[0]]:
            state = run_of(stage)(stage, state, context)
        spec = stages[captures[0]]
        assert isinstance(spec, Capture)
        settled, _ = context.settle(spec, state)
        whole = _capture.capture_share(settled, state, context, share)
    done = f"share {share[0] + 1} of {share[1]} is {'written' if whole else 'written up to the deadline'}"
    return f"{done}; when all are, `potstill run {recipe}` finishes the cache and goes on"
