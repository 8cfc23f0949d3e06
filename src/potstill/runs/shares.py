"""A capture by itself: a share of it beside other runs that write theirs, or the repair of a damaged one."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from potstill.console import Console
from potstill.errors import Interrupted, RecipeError
from potstill.recipe.stages import run_of
from potstill.runs import setup, status
from potstill.runs.stopping import stop_signals
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
        Interrupted: a signal arrived; what is written stays, and the error has the command that goes on.
    """
    again = _command(recipe, overrides, "--shard", f"{share[0] + 1}/{share[1]}")
    with _before_capture(recipe, overrides, console, again) as (settled, state, context):
        whole = _capture.capture_share(settled, state, context, share)
    done = f"share {share[0] + 1} of {share[1]} is {'written' if whole else 'written up to the deadline'}"
    return f"{done}; when all are, `potstill run {recipe}` finishes the cache and goes on"


def repair(recipe: str | Path, overrides: Sequence[str], console: Console) -> tuple[list[str], str]:
    """Read every byte of the recipe's capture, and ask again about the rows of damaged blocks; the damage, and what
    was done in words.

    Raises:
        RecipeError: the recipe has no capture stage.
        Interrupted: a signal arrived; what is mended stays, and the error has the command that goes on.
    """
    again = _command(recipe, overrides, "--repair")
    with _before_capture(recipe, overrides, console, again) as (settled, state, context):
        artifact, damage = _capture.repaired(settled, state, context)
    found = "nothing was damaged" if not damage else f"{len(damage)} damaged places are mended"
    return damage, f"{artifact.path}: {found}"


@contextmanager
def _before_capture(
    recipe: str | Path, overrides: Sequence[str], console: Console, again: str
) -> Iterator[tuple[Capture, State, Context]]:
    """The recipe's capture stage without an `auto`, and what the stages before it have left."""
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
    with stop_signals() as received, _told(again):
        parts = setup.set_up(opened)
        context = Context(
            parts,
            store,
            console,
            seed=opened.recipe.seed,
            stages=stages,
            stop_signal=lambda: received.number,
        )
        with store.in_use():
            state = State()
            _rows.require_rows(stages[: captures[0] + 1], context)
            for stage in stages[: captures[0]]:
                state = run_of(stage)(stage, state, context)
            spec = stages[captures[0]]
            assert isinstance(spec, Capture)
            yield context.settle(spec, state)[0], state, context


@contextmanager
def _told(again: str) -> Iterator[None]:
    """Say how to go on behind a signal."""
    try:
        yield
    except Interrupted as stop:
        stop.fix = f"Continue with: {again}"
        raise
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped at once; what was not saved is done again.",
            signal_number=signal.SIGINT,
            fix=f"Continue with: {again}",
        ) from error


def _command(recipe: str | Path, overrides: Sequence[str], *options: str) -> str:
    """A capture command as a shell takes it."""
    return f"{status.typed()} capture {shlex.join([str(recipe), *overrides, *options])}"
