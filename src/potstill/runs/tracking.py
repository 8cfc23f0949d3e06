"""The trackers that a recipe names: each receives every step, validation and final figure, and none ends a run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import Any

from potstill.console import Console
from potstill.errors import RecipeError
from potstill.recipe import plugins
from potstill.recipe.recipe import Recipe, dump_yaml
from potstill.recipe.specs import TrackerChoice
from potstill.recipe.yaml import load_yaml
from potstill.store.folder import RECIPE
from potstill.trackers._tracker import TrackedRun, Tracker

NO_NUMBERS = (
    "event",
    "step",
    "best",
    "rows",
    "peak_rss_bytes",
)  # of an event: what it is, and how it was made
ROLES = ("before", "after", "control", "reference", "train")  # blocks of a summary that hold figures


def require(choices: Sequence[TrackerChoice]) -> None:
    """Refuse a tracker that cannot be imported, or whose package is not installed.

    Raises:
        RecipeError: names the extra that brings the package.
    """
    for choice in choices:
        plugins.load("trackers", choice.name, choice.options, "trackers")
        package = choice.constant("PACKAGE")
        if package is not None and importlib.util.find_spec(package) is None:
            raise RecipeError(
                f"the package {package} is not installed.",
                path=f"trackers.{choice.name}",
                fix=f"pip install 'potstill[{choice.name}]', or from a clone pip install -e '.[{choice.name}]'; "
                "or leave the tracker out: trackers=[].",
            )


class Tracking:
    """Trackers under way. One that raises is reported once and left out from then on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._trackers: dict[str, Tracker] = {}
        self._figures: dict[str, float] = {}
        self._finished = False

    def start(self, choice: TrackerChoice, run: TrackedRun) -> None:
        """Start a tracker.

        Raises:
            RecipeError: it cannot start.
        """
        try:
            with redirect_stdout(sys.stderr):
                plugin = plugins.load("trackers", choice.name, choice.options)
                self._trackers[choice.name] = plugin.start(run, **choice.options)
        except Exception as error:
            raise RecipeError(
                f"the tracker cannot start: {type(error).__name__}: {error}.",
                path=f"trackers.{choice.name}",
                fix="Repair what it says, or leave the tracker out: trackers=[].",
            ) from error

    def log(self, stage: str, event: Mapping[str, Any]) -> None:
        """Pass on a step or a validation as a training logs it; nothing else is."""
        if event.get("event") not in ("step", "validation"):
            return
        prefix = f"{stage}/" if event["event"] == "step" else f"{stage}/validation/"
        values = {f"{prefix}{k}": float(v) for k, v in _numbers(event).items() if k not in NO_NUMBERS}
        self._each(lambda tracker: tracker.log(stage, int(event["step"]), values))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Keep the figures of the finished run for the trackers' end."""
        self._figures, self._finished = figures(summary), True

    def close(self) -> None:
        """End every tracker."""
        self._each(lambda tracker: tracker.close(self._figures, finished=self._finished))
        self._trackers = {}

    def _each(self, do: Callable[[Tracker], None]) -> None:
        for name, tracker in tuple(self._trackers.items()):
            try:
                with redirect_stdout(sys.stderr):  # standard output is the run's result alone
                    do(tracker)
            except Exception as error:  # a tracker's own code, its server and its disk may fail in any way
                del self._trackers[name]
                self._console.warn(
                    f"the tracker {name} failed and is left out from here on: {type(error).__name__}: {error}. "
                    "The run goes on; all that it tracks is in its folder too."
                )


@contextmanager
def tracking(recipe: Recipe, folder: Path, console: Console, *, first: bool) -> Iterator[Tracking]:
    """Start the recipe's trackers in the `first` process, and end them however the run ends.

    Raises:
        RecipeError: one cannot start.
    """
    hidden = {key: Recipe.model_fields[key].default for key in ("runs", "devices", "trackers")}
    run = TrackedRun(
        name=f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}",
        project=recipe.name,
        folder=folder,
        recipe=load_yaml(dump_yaml(recipe.model_copy(update=hidden)), RECIPE),
    )
    result = Tracking(console)
    try:
        for choice in recipe.trackers if first else ():
            result.start(choice, run)
        yield result
    finally:
        result.close()


def figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a summary by names such as `after/forward_kl`; what was not measured is left out."""
    blocks = {role: summary.get(role) or {} for role in ROLES}
    return {
        f"{role}/{name}": float(value)
        for role, block in blocks.items()
        for name, value in _numbers({k: _value(v) for k, v in block.items()}).items()
    }


def _value(entry: Any) -> Any:
    return entry.get("value") if isinstance(entry, Mapping) else entry


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
