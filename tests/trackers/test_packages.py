"""The trackers' own packages follow a run without a network. Each test skips where its package is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders import places
from builders.cli import process

LAST = 3


def wanted(package: str) -> Any:
    return pytest.mark.skipif(
        __import__("importlib.util").util.find_spec(package) is None,
        reason=f"needs the package {package}: pip install 'potstill[{package}]'",
    )


def finished(place: Path, tracker: Any) -> dict[str, Any]:
    """A run that the tracker follows, and its summary."""
    stages = f"[{{distill: {{steps: {LAST}}}}}, {{evaluate: {{samples: 2, resamples: 100}}}}]"
    places.write(place, stages=stages, trackers=json.dumps([tracker]))
    done = process("run", "r.yaml", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "warning: the tracker" not in done.stderr, done.stderr
    return json.loads(done.stdout)["summary"]


def losses(place: Path) -> list[float]:
    lines = (place / "runs/r/stages/distill/metrics.jsonl").read_text().splitlines()
    return [event["loss"] for event in map(json.loads, lines) if event["event"] == "step"]


@wanted("tensorboard")
def test_tensorboard_reads_the_curves_and_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary = finished(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "runs/r/tensorboard").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    curve = events.Scalars("distill/loss")
    assert [point.step for point in curve] == list(range(1, LAST + 1))
    assert [point.value for point in curve] == pytest.approx(losses(tmp_path))
    assert events.Scalars("distill/validation/loss")[0].step == 0
    kl = summary["after"]["forward_kl"]["value"]
    assert events.Scalars("after/forward_kl")[0].value == pytest.approx(kl)


@wanted("mlflow")
def test_mlflow_reads_the_curves_and_the_figures(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    summary = finished(tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "runs/r/mlflow.db") as reader:
        ((status, run),) = reader.execute("select status, run_uuid from runs").fetchall()
        logged = reader.execute("select key, step, value from metrics order by step").fetchall()
        tags = dict(reader.execute("select key, value from tags where run_uuid = ?", (run,)).fetchall())
    assert status == "FINISHED"
    curve = {step: value for key, step, value in logged if key == "distill/loss"}
    assert list(curve) == list(range(1, LAST + 1))
    assert list(curve.values()) == pytest.approx(losses(tmp_path))
    final = {key: value for key, _, value in logged}["after/forward_kl"]
    assert final == pytest.approx(summary["after"]["forward_kl"]["value"])
    assert json.loads(tags["recipe"])["stages"][0] == {"distill": {"steps": LAST}}


@wanted("trackio")
def test_trackio_keeps_the_curves_in_its_database(tmp_path, monkeypatch):
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    finished(tmp_path, "trackio")
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as reader:
        rows = reader.execute("select step, metrics from metrics").fetchall()
    logged = [(step, json.loads(values)) for step, values in rows]
    curve = sorted((step, values["distill/loss"]) for step, values in logged if "distill/loss" in values)
    assert [step for step, _ in curve] == list(range(1, LAST + 1))
    assert [loss for _, loss in curve] == pytest.approx(losses(tmp_path))
    assert any("after/forward_kl" in values for _, values in logged)


@wanted("wandb")
def test_wandb_offline_keeps_the_run_in_its_folder(tmp_path):
    finished(tmp_path, {"wandb": {"project": "x", "mode": "offline"}})
    (run,) = (tmp_path / "runs/r/wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    content = log.read_bytes()
    assert b"distill/loss" in content
    assert b"after/forward_kl" in content
