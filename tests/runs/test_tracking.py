"""Trackers receive every step, validation and final figure, and can end no run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from builders import places
from builders.cli import potstill
from builders.recipes import problems, read
from potstill.recipe.recipe import dump_yaml, parse_recipe
from potstill.recipe.yaml import load_yaml

OUTSIDE = "builders.outside.tracker:lines"
STAGES = "[{distill: {steps: 3, validate_every: 2}}, {evaluate: {samples: 2, resamples: 100}}]"


def tracked(place: Path, **options: Any) -> dict[str, str]:
    """The recipe's section that names the outside tracker."""
    return {"trackers": json.dumps([{OUTSIDE: {"file": str(place / "tracked.jsonl"), **options}}])}


def received(place: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (place / "tracked.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def run(place: Path, *arguments: str, code: int = 0) -> Any:
    done = potstill("run", "r.yaml", *arguments, cwd=place)
    assert done.returncode == code, done.stderr
    return done


def test_a_tracker_receives_every_step_validation_and_figure(tmp_path):
    places.write(tmp_path, stages=STAGES, **tracked(tmp_path))
    done = run(tmp_path, "--json")
    json.loads(done.stdout)  # what a tracker prints is not part of it
    logged = (tmp_path / "runs/r/stages/distill/metrics.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, logged) if event["event"] != "resumed"]
    lines = received(tmp_path, "log")
    assert [(line["stage"], line["step"]) for line in lines] == [("distill", e["step"]) for e in events]
    for line, event in zip(lines, events, strict=True):
        prefix = "distill/validation/" if event["event"] == "validation" else "distill/"
        assert line["values"][f"{prefix}loss"] == event["loss"]
        assert {name.removeprefix(prefix) for name in line["values"]} <= event.keys()
    (close,) = received(tmp_path, "close")
    summary = places.summary(tmp_path)
    assert close["finished"]
    assert close["figures"]["after/forward_kl"] == summary["after"]["forward_kl"]["value"]
    assert close["figures"]["train/steps"] == 3
    (start,) = received(tmp_path, "start")
    assert start["project"] == "r"
    assert start["name"].startswith("r-")
    assert not {"runs", "trackers", "devices"} & start["recipe"].keys()


def test_a_later_start_tells_its_tracker_what_earlier_ones_have_done(tmp_path):
    places.write(tmp_path, stages="[{distill: {steps: 3, checkpoint_every: 1}}]", **tracked(tmp_path))
    run(tmp_path)
    first = received(tmp_path, "log")
    (tmp_path / "tracked.jsonl").unlink()
    run(tmp_path)
    assert received(tmp_path, "log") == [
        {**line, "values": {name: pytest.approx(value) for name, value in line["values"].items()}}
        for line in first
    ]


def test_a_tracker_that_fails_warns_once_and_ends_no_run(tmp_path):
    places.write(tmp_path, stages=STAGES, **tracked(tmp_path, fails_at=2))
    done = run(tmp_path)
    assert done.stderr.count(f"the tracker {OUTSIDE} failed and is left out from here on") == 1
    assert "OSError: the server went away" in done.stderr
    assert {line["step"] for line in received(tmp_path, "log")} == {0, 1}
    assert received(tmp_path, "close") == []
    assert places.summary(tmp_path)["train"]["steps"] == 3


def test_a_tracker_that_cannot_start_stops_the_run_before_its_first_stage(tmp_path):
    places.write(tmp_path, stages=STAGES, **tracked(tmp_path, starts=False))
    done = run(tmp_path, code=2)
    assert "ConnectionError: nobody answers" in done.stderr
    assert "trackers=[]" in done.stderr
    assert not list((tmp_path / "runs/.store").glob("*train*"))
    run(tmp_path, "trackers=[]")


def test_a_run_that_fails_ends_its_trackers_as_unfinished(tmp_path):
    places.write(
        tmp_path, stages="[{distill: {steps: 3, learning_rate: 1.0e+30, warmup: 0}}]", **tracked(tmp_path)
    )
    potstill("run", "r.yaml", cwd=tmp_path)
    (close,) = received(tmp_path, "close")
    assert close == {"kind": "close", "figures": {}, "finished": False}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_missing_package_is_refused_by_its_extra_before_anything_runs(tmp_path, monkeypatch, command, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted, *rest: None if wanted == name else find(wanted, *rest)
    )
    places.write(tmp_path, trackers=f"[{name}]")
    done = potstill(command, "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert f"pip install 'potstill[{name}]'" in done.stderr
    assert f"trackers.{name}" in done.stderr
    assert not list(tmp_path.glob("runs/.store/*"))


def test_the_extra_of_every_tracker_exists():
    import tomllib

    from potstill.recipe import plugins

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for name, signature in plugins.plugins("trackers").items():
        (package,) = project["optional-dependencies"][name]
        assert package.startswith(signature.constants["PACKAGE"])


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("mlflow", ["mlflow"]),
        ({"wandb": {"project": "x"}}, ["wandb"]),
        (["trackio", "mlflow"], ["trackio", "mlflow"]),
    ],
)
def test_one_tracker_or_several_may_be_named(written, names):
    recipe = read(trackers=written)
    assert [tracker.name for tracker in recipe.trackers] == names
    assert parse_recipe(load_yaml(dump_yaml(recipe), "")) == recipe
    assert recipe.hash() == read().hash()


def test_a_tracker_that_does_not_exist_or_stands_twice_is_refused():
    assert "did you mean wandb?" in problems(trackers=["wanbd"])["trackers.0"]
    assert "names a tracker twice" in problems(trackers=["mlflow", {"mlflow": {"uri": "x"}}])["trackers"]
    assert problems(trackers=[{"wandb": {"mode": "sometimes"}}])


def test_no_tracker_is_named_by_default_and_none_stands_on_the_page(tmp_path):
    assert read().trackers == ()
    places.write(tmp_path, stages=STAGES, **tracked(tmp_path))
    run(tmp_path)
    page = (tmp_path / "runs/r/report.html").read_text()
    assert "tracked.jsonl" not in page
