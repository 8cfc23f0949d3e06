"""`potstill status` of a run in several processes says what it says of a run in one."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from builders.many import finished, prepare, start, trained

TWO = ("devices.processes=2",)


def status(place: Path) -> dict[str, Any]:
    return json.loads(start(place, "status", "runs/many", "--json").communicate(timeout=120)[0])


def logged(place: Path) -> dict[int, float]:
    """The loss of every step that the training under way has logged."""
    (log,) = place.glob("runs/.store/.building-train-*/metrics.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


def training(place: Path, steps: int) -> Any:
    """A run in two processes, once its training has made so many steps."""
    process = start(place, "run", "many.yaml", *TWO, "distill.steps=4000")
    while process.poll() is None and not trained(place, steps):
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()
    return process


def test_the_status_of_a_run_in_two_processes_is_that_of_its_training(tmp_path):
    place = prepare(tmp_path)
    process = training(place, 3)
    said = status(place)
    assert (said["state"], said["stage"], said["steps"]) == ("running", "distill", 4000)
    assert said["loss"] == logged(place)[said["step"]]
    assert said["seconds_left"] > 0
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    said = status(place)
    assert (said["state"], said["error"]) == ("interrupted", None)
    assert said["hint"] == "Continue with: potstill run runs/many"
    assert said["step"] == max(logged(place))


@pytest.mark.prove
def test_the_status_of_a_killed_run_in_two_processes_says_its_last_step(tmp_path):
    place = prepare(tmp_path)
    process = training(place, 3)
    for member in (*psutil.Process(process.pid).children(recursive=True), process):
        member.kill()
    process.communicate(timeout=120)
    said = status(place)
    assert said["state"] == "died"
    assert f"ended without a word after step {max(logged(place))}" in said["hint"]
    finished(place, "runs/many", *TWO, "distill.steps=10")
    said = status(place)
    assert (said["state"], said["hint"], said["error"]) == ("finished", "", None)
    assert said["verdict"]
    assert said["outputs"].keys() == {"summary", "student", "report"}
