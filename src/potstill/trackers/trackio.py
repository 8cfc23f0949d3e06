"""Trackio: a local database (TRACKIO_DIR), or a Space on the hub where the recipe or TRACKIO_SPACE_ID names one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from potstill.trackers._tracker import TrackedRun, Tracker

PACKAGE = "trackio"


def start(run: TrackedRun, *, project: str | None = None, space: str | None = None) -> Tracker:
    """Begin a run of `project`, else of the recipe's name; `space` is the Space that it is also shown in."""
    import trackio

    started = trackio.init(
        project=project or run.project,
        name=run.name,
        space_id=space,
        config=dict(run.recipe),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return _Run(started, trackio.finish)


class _Run:
    def __init__(self, run: Any, finish: Callable[[], None]) -> None:
        self._run, self._finish = run, finish

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, figures: Mapping[str, float], *, finished: bool) -> None:
        if figures:
            self._run.log(dict(figures))
        self._finish()  # not the run's own: the package would finish it once more at exit, and print
