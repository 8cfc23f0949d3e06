"""What each tracker asks of its package, with a stand-in of the same interface; no package is needed for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from potstill.trackers import mlflow, tensorboard, trackio, wandb
from potstill.trackers._tracker import TrackedRun

FIGURES = {"after/forward_kl": 0.5}


def run_in(place: Path) -> TrackedRun:
    return TrackedRun("r-1", "r", place, {"seed": 3})


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> Any:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def followed(tracker: Any) -> None:
    """Two stages of one step each, and the end."""
    for stage in ("distill", "finetune"):
        tracker.log(stage, 1, {f"{stage}/loss": 2.0})
        tracker.log(stage, 1, {f"{stage}/validation/loss": 3.0})
    tracker.close(FIGURES, finished=True)


def test_tensorboard_writes_below_the_runs_folder_or_the_one_that_is_named(tmp_path, monkeypatch):
    writer = MagicMock()
    stand_in(monkeypatch, "torch.utils.tensorboard", SummaryWriter=writer)
    followed(tensorboard.start(run_in(tmp_path)))
    assert writer.call_args.args == (str(tmp_path / "tensorboard/r-1"),)
    written = [call.args for call in writer.return_value.add_scalar.call_args_list]
    assert written[0] == ("distill/loss", 2.0, 1)
    assert written[-1] == ("after/forward_kl", 0.5, 0)
    writer.return_value.close.assert_called_once_with()
    tensorboard.start(run_in(tmp_path), folder=str(tmp_path / "logs"))
    assert writer.call_args.args == (str(tmp_path / "logs/r-1"),)


@pytest.fixture
def settings() -> Any:
    """W&B's settings, of a version that does not know all that is switched off."""

    class Settings(SimpleNamespace):
        model_fields = dict.fromkeys(("console", "disable_git", "disable_code", "x_disable_stats"))

    return Settings


def test_wandb_is_sent_numbers_and_the_recipe_alone(tmp_path, monkeypatch, settings):
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    module = stand_in(monkeypatch, "wandb", Settings=settings, init=MagicMock())
    followed(wandb.start(run_in(tmp_path), entity="team"))
    asked = module.init.call_args.kwargs
    assert (asked["project"], asked["entity"], asked["name"], asked["mode"]) == ("r", "team", "r-1", None)
    assert asked["config"] == {"seed": 3}
    assert vars(asked["settings"]) == {
        "console": "off", "disable_git": True, "disable_code": True, "x_disable_stats": True,
    }  # fmt: skip
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    run = module.init.return_value
    axes = [(call.args, call.kwargs) for call in run.define_metric.call_args_list]
    assert axes == [((f"{stage}/*",), {"step_metric": f"{stage}/step"}) for stage in ("distill", "finetune")]
    assert run.log.call_args_list[0].args == ({"distill/step": 1, "distill/loss": 2.0},)
    run.summary.update.assert_called_once_with(FIGURES)
    run.finish.assert_called_once_with(exit_code=0)


def test_trackio_is_local_unless_a_space_is_named(tmp_path, monkeypatch):
    module = stand_in(monkeypatch, "trackio", init=MagicMock(), finish=MagicMock())
    followed(trackio.start(run_in(tmp_path)))
    asked = module.init.call_args.kwargs
    assert (asked["project"], asked["name"], asked["space_id"]) == ("r", "r-1", None)
    assert not asked["auto_log_gpu"]
    run = module.init.return_value
    assert run.log.call_args_list[0].args == ({"distill/loss": 2.0},)
    assert run.log.call_args_list[-1].args == (FIGURES,)
    module.finish.assert_called_once_with()
    trackio.start(run_in(tmp_path), project="p", space="me/board")
    assert module.init.call_args.kwargs["space_id"] == "me/board"


@pytest.mark.parametrize("finished", [True, False])
def test_mlflow_writes_files_of_the_run_unless_a_server_is_named(tmp_path, monkeypatch, finished):
    for name in (*mlflow.CALM, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    client = MagicMock()
    client.return_value.get_experiment_by_name.return_value = None
    stand_in(monkeypatch, "mlflow", MlflowClient=client)
    stand_in(monkeypatch, "mlflow.entities", Metric=lambda name, value, time, step: (name, value, step))
    tracker = mlflow.start(run_in(tmp_path))
    assert client.call_args.kwargs == {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    assert client.return_value.set_tag.call_args.args[1:] == ("recipe", '{"seed": 3}')
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    tracker.log("distill", 4, {"distill/loss": 2.0})
    assert client.return_value.log_batch.call_args.args[1] == [("distill/loss", 2.0, 4)]
    tracker.close(FIGURES if finished else {}, finished=finished)
    assert client.return_value.set_terminated.call_args.args[1] == ("FINISHED" if finished else "FAILED")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    mlflow.start(run_in(tmp_path))
    assert client.call_args.kwargs == {"tracking_uri": "http://localhost:5000"}
    mlflow.start(run_in(tmp_path), uri="sqlite:////elsewhere.db", experiment="e")
    assert client.call_args.kwargs == {"tracking_uri": "sqlite:////elsewhere.db"}
    client.return_value.create_experiment.assert_called_with("e")
