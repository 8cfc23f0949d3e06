"""MLflow: to the server that the recipe or MLFLOW_TRACKING_URI names, else to `mlflow.db` in the run's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from potstill.trackers._tracker import TrackedRun, Tracker

PACKAGE = "mlflow"
# MLflow reports its use to its makers, and tries a dead server for minutes, while the training waits.
CALM = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
LONGEST = 5000  # characters of a tag


def start(run: TrackedRun, *, uri: str | None = None, experiment: str | None = None) -> Tracker:
    """Begin a run of `experiment`, else of the recipe's name, on the tracking server at `uri`."""
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    local = f"sqlite:///{(run.folder / 'mlflow.db').absolute()}"
    place = uri or os.environ.get("MLFLOW_TRACKING_URI") or local
    client = MlflowClient(tracking_uri=place)
    name = experiment or run.project
    known = client.get_experiment_by_name(name)
    number = client.create_experiment(name) if known is None else known.experiment_id
    made = client.create_run(number, run_name=run.name)
    if len(recipe := json.dumps(run.recipe)) <= LONGEST:
        client.set_tag(made.info.run_id, "recipe", recipe)
    return _Run(client, made.info.run_id)


class _Run:
    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._id = client, run_id

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, figures: Mapping[str, float], *, finished: bool) -> None:
        if figures:
            self.log("", 0, figures)
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")
