"""Rows without answers: the student writes them, or the stage that needs them names the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders.chats import write_lines
from builders.cli import potstill
from builders.tiny import save_tiny

RECIPE = """\
name: alone
teacher: {model: teacher, dtype: float32}
student: {from_teacher: {keep_layers: 2}}
data: {train: rows.jsonl}
stages:
  - distill: {tokens_per_step: 32, micro_batch_tokens: 64, steps: 4, precision: float32, strategy: STRATEGY}
"""


def prepared(folder: Path, strategy: str, answered: int = 0) -> str:
    save_tiny(folder / "teacher", layers=3)
    rows = [
        {"id": f"p{i}", "prompt": f"w{12 + i} w{40 + i}"} | ({"response": "w20 w21"} if i < answered else {})
        for i in range(24)
    ]
    write_lines(folder / "rows.jsonl", *rows)
    (folder / "alone.yaml").write_text(RECIPE.replace("STRATEGY", strategy))
    return "alone.yaml"


def steps(folder: Path) -> list[dict]:
    lines = (folder / "runs/alone/stages/distill/metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "step"]


@pytest.mark.parametrize("answered", [0, 18])
def test_a_student_that_writes_everything_needs_prompts_alone(tmp_path, answered):
    """The plan counts a prompt with as many tokens as may be written: 32 a step are four prompts of eight."""
    recipe = prepared(tmp_path, "{on_policy: {max_new_tokens: 8}}", answered)
    assert potstill("check", recipe, "--quick", cwd=tmp_path).returncode == 0
    done = potstill("run", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = steps(tmp_path)
    assert all(event["tokens"] == event["rollout_tokens"] for event in events)
    if not answered:
        assert [event["rollouts"] for event in events] == [4] * 4


@pytest.mark.parametrize("strategy", ["offline", "{on_policy: {on_policy_fraction: 0.5}}"])
def test_a_stage_that_reads_answers_names_the_row_without_one(tmp_path, strategy):
    refused = potstill("run", prepared(tmp_path, strategy), cwd=tmp_path)
    assert refused.returncode == 2
    assert "it needs an assistant turn at its end" in refused.stderr
    assert "rows.jsonl:" in refused.stderr


def test_prompts_that_leave_no_room_are_counted_and_never_cut(tmp_path):
    recipe = prepared(tmp_path, "{on_policy: {max_new_tokens: 8}}", 18)
    refused = potstill("run", recipe, "data.max_length=10", cwd=tmp_path)
    assert refused.returncode == 2
    assert "max_length" in refused.stderr
