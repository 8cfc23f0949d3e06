"""A guard stops a run with a checkpoint, and the run goes on from it under other limits."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.cli import potstill

STAGES = (
    "[{distill: {steps: 5, tokens_per_step: 40, divergence: reverse_kl, validate_every: 5, "
    "strategy: {on_policy: {max_new_tokens: 6}}, guards: {overlap: 1.0, truncation: null, window: 2}}}, "
    "{evaluate: {metrics: [likelihood], samples: 4, resamples: 100}}]"
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run whose student can never share all of its teacher's likely ids."""
    place = places.write(tmp_path_factory.mktemp("stopped"), stages=STAGES)
    return place, potstill("run", "r.yaml", cwd=place)


def events(place):
    (metrics,) = place.rglob("metrics.jsonl")
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_a_guard_ends_a_run_and_goes_on_where_it_is_lifted(stopped):
    place, done = stopped
    assert done.returncode == 6
    assert "distill stopped at step 2" in done.stderr
    assert "distill.guards.overlap" in done.stderr
    assert [e["step"] for e in events(place) if e["event"] == "stop"] == [2]
    assert next(e for e in events(place) if e["event"] == "cold_start")["rollouts"] == 8

    again = potstill("run", "r.yaml", cwd=place)  # nothing has changed: it stops before it trains
    assert again.returncode == 6
    assert [e["step"] for e in events(place) if e["event"] == "step"] == [1, 2]

    lifted = potstill("run", "r.yaml", "distill.guards.overlap=null", cwd=place)
    assert lifted.returncode == 0, lifted.stderr
    assert [e["step"] for e in events(place) if e["event"] == "step"] == [1, 2, 3, 4, 5]
    summary = places.summary(place)
    assert [stop["guard"] for stop in summary["on_policy"]["distill"]["stops"]] == ["overlap"]
    assert "A guard stopped distill at step 2" in lifted.stdout
    page = (place / "runs/r/report.html").read_text()
    assert "A guard stopped distill at step 2" in page
    assert 'id="on-policy"' in page


def test_a_run_whose_guards_are_off_stops_nowhere(tmp_path):
    places.write(
        tmp_path, stages=STAGES.replace("guards: {overlap: 1.0, truncation: null, window: 2}", "guards: null")
    )
    assert potstill("run", "r.yaml", "--until", "distill", cwd=tmp_path).returncode == 0
