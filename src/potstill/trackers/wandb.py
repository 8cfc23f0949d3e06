"""Weights & Biases: to its server, or to the one that WANDB_BASE_URL names; `mode: offline` keeps files here.

Numbers and the recipe are sent; source code, git, the terminal, packages and facts of the machine are not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from potstill.trackers._tracker import TrackedRun, Tracker

PACKAGE = "wandb"
# As far as the installed version knows them.
QUIET = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


def start(
    run: TrackedRun,
    *,
    project: str | None = None,
    entity: str | None = None,
    mode: Literal["online", "offline"] | None = None,
) -> Tracker:
    """Begin a run of `project`, else of the recipe's name. Without `mode`, WANDB_MODE decides, and W&B itself."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # a second server, which nobody named
    import wandb

    known = wandb.Settings.model_fields
    return _Run(
        wandb.init(
            project=project or run.project,
            entity=entity,
            name=run.name,
            mode=mode,
            dir=str(run.folder),
            config=dict(run.recipe),
            settings=wandb.Settings(**{key: value for key, value in QUIET.items() if key in known}),
        )
    )


class _Run:
    def __init__(self, run: Any) -> None:
        self._run = run
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:  # W&B's own counter only rises, and every stage begins at 0
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({f"{stage}/step": step, **values})

    def close(self, figures: Mapping[str, float], *, finished: bool) -> None:
        self._run.summary.update(dict(figures))
        self._run.finish(exit_code=0 if finished else 1)
