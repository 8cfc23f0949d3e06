"""TensorBoard: event files in the run's folder or a folder of your own. Nothing leaves this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.trackers._tracker import TrackedRun, Tracker

PACKAGE = "tensorboard"


def start(run: TrackedRun, *, folder: str | None = None) -> Tracker:
    """Write below `folder`, which starts from the working directory, or below `tensorboard/` of the run."""
    from torch.utils.tensorboard import SummaryWriter

    place = run.folder / "tensorboard" if folder is None else Path(folder).expanduser()
    return _Files(SummaryWriter(str(place / run.name), flush_secs=10))


class _Files:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, figures: Mapping[str, float], *, finished: bool) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, 0)
        self._writer.close()
