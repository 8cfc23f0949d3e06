"""A teacher that is read block by block, captured once and trained from: the whole teacher's training."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.tiny import save_tiny
from potstill.runs.run import run

STAGES = "[{capture: {batch_tokens: 64, shard_bytes: 4096, signal: hidden}}, {distill: {steps: 3}}, evaluate]"


def steps_and_figures(place, teacher: str):
    places.recipe(
        place,
        name=teacher.partition(":")[0].strip("{"),
        teacher=teacher,
        student="{model: small}",
        stages=STAGES,
        seed="3",
    )
    path = run(place / "r.yaml").path
    lines = (path / "stages/distill/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    return losses, json.loads((path / "summary.json").read_text(encoding="utf-8"))["after"]


def test_training_and_evaluation_are_those_of_the_whole_teacher(tmp_path):
    save_tiny(tmp_path / "small", seed=5, layers=1)
    places.write(tmp_path)
    losses, after = steps_and_figures(tmp_path, "{layered: teacher, dtype: float32}")
    wanted, figures = steps_and_figures(tmp_path, "{model: teacher, dtype: float32}")
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert after["forward_kl"] == pytest.approx(figures["forward_kl"], rel=1e-3)
