"""Finetuning on rows of its own: which are trained on, which choose the best weights."""

from __future__ import annotations

import json

from builders import places
from builders.cli import potstill


def test_finetuning_runs_without_a_row_to_choose_by(tmp_path):
    places.write(tmp_path, places.answered(60), data="{train: rows.jsonl, max_length: 40}")
    task = [{"prompt": f"w{20 + i} w9", "response": "w100"} for i in range(8)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    stages = "[{distill: {steps: 1}}, {finetune: {data: task.jsonl, steps: 1}}]"
    data = "{train: rows.jsonl, max_length: 40, on_bad_row: skip}"
    places.write(tmp_path, places.answered(60), data=data, stages=stages)
    chosen = places.read(tmp_path).data.of_stages["finetune"].validation
    for row in task:
        if any(row["prompt"] == one.prompt_text for one in chosen):
            row["response"] = " ".join(["w100"] * 60)
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_finetune_data_leaves_out_held_out_prompts(tmp_path):
    rows = places.answered(60)
    stages = "[{distill: {steps: 1}}, {finetune: {data: rows.jsonl, epochs: 1}}, {evaluate: {}}]"
    places.write(tmp_path, rows, stages=stages)
    parts = places.read(tmp_path)
    held = {row.prompt_text for row in parts.data.heldout}
    own = parts.data.of_stages["finetune"]
    train, chosen = own.train, own.validation
    assert held
    assert not held & {row.prompt_text for row in train + chosen}
    assert chosen
    assert len(train) + len(chosen) + len(held) == 60
    assert any("rows of finetune have held-out prompts" in note for note in parts.notes)


def test_finetune_data_chooses_its_best_weights_by_its_own_rows(tmp_path):
    places.write(
        tmp_path,
        places.answered(60),
        stages="[{distill: {steps: 1}}, {finetune: {data: task.jsonl, steps: 3, learning_rate: 0.01}}]",
    )
    task = [{"prompt": f"w{90 + i % 9} w{20 + i}", "response": "w100 w101 w102"} for i in range(60)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = (tmp_path / "runs/r/stages/finetune/metrics.jsonl").read_text().splitlines()
    losses = [e["loss"] for e in map(json.loads, events) if e["event"] == "validation"]
    assert losses[-1] < losses[0]
    assert "no validation was better" not in done.stderr
