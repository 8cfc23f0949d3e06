"""The demo's recipe with its real teacher, in miniature, so that it cannot rot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import potstill
from potstill.console import Console

ROOT = Path(__file__).parents[2]


@pytest.mark.real_model
def test_the_quickstart_distils_the_embedded_model(tmp_path):
    lines = (ROOT / "examples/data/heldout.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "heldout.jsonl").write_text("\n".join(lines[:6]) + "\n", encoding="utf-8")
    result = potstill.run(
        ROOT / "examples/quickstart.yaml",
        [
            f"runs={tmp_path / 'runs'}", f"data.heldout={tmp_path / 'heldout.jsonl'}", "data.limit=24",
            "generate.max_new_tokens=12", "generate.filters=null", "distill.steps=3", "distill.tokens_per_step=64", "polish.steps=2",
            "polish.tokens_per_step=24", "polish.strategy.on_policy.max_new_tokens=8",
            "evaluate.metrics=[likelihood, agreement]",
        ],
        console=Console(quiet=True),
    )  # fmt: skip
    assert result.teacher.params == 134_515_008
    assert result.student.params == 106_194_240
    assert result.before.forward_kl.value > 0.5
    assert result.after.forward_kl.value < result.before.forward_kl.value
    answers = (tmp_path / "runs/quickstart/stages/generate/answers.jsonl").read_text().splitlines()
    assert any(json.loads(line)["text"].strip() for line in answers)
    assert result.outputs["report"].is_file()
