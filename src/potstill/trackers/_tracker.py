"""What a tracker is given, and what it answers to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker follows.

    Args:
        name: of this start of the run; no other start has it.
        project: the run's name in its recipe.
        folder: the run's folder, for trackers that write files.
        recipe: what the recipe says, without defaults, devices, the folder of runs and the trackers.
    """

    name: str
    project: str
    folder: Path
    recipe: Mapping[str, Any]


class Tracker(Protocol):
    """Receives numbers; whatever it raises is reported once and ends no run."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step of a stage, by names such as `distill/loss` and `distill/validation/loss`."""
        ...

    def close(self, figures: Mapping[str, float], *, finished: bool) -> None:
        """Take the final figures, such as `after/forward_kl`, and end; without any where the run has not finished."""
        ...
