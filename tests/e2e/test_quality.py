"""A run on filtered answers and a mix of sources, on the command line."""

from __future__ import annotations

import json

from builders import places
from builders.chats import write_lines
from builders.cli import potstill

STAGES = (
    "[{generate: {max_new_tokens: 4, filters: [{truncated: {action: count}}, {leakage: {action: count}}]}}, "
    "{distill: {steps: 1}}, {finetune: {steps: 1}}]"
)
MIX = "{train: rows.jsonl, mix: [{source: teacher_generated, share: 0.5}, {source: real.jsonl, share: 0.5, terms: CC0-1.0}]}"


def test_a_local_teachers_answers_are_filtered_and_mixed_and_other_filters_write_nothing_anew(tmp_path):
    real = [{"prompt": f"w{60 + i} w13", "response": f"w{90 - i} w14"} for i in range(8)]
    write_lines(tmp_path / "real.jsonl", *real)
    places.write(
        tmp_path, places.prompts(), data=MIX, stages=STAGES, teacher="{model: teacher, terms: made here}"
    )
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mix of 16 rows: 8 of " in done.stderr
    generate = tmp_path / "runs/r/stages/generate"
    facts = json.loads((generate / "manifest.json").read_text())["facts"]
    assert facts["source"]["terms"] == "made here"
    assert facts["source"]["sampling"]["max_new_tokens"] == 4
    assert facts["filters"]["truncated"]["action"] == "count"
    assert (generate / "rejected.jsonl").is_file()
    summary = places.summary(tmp_path)
    assert [(one["source"], one["rows"]) for one in summary["mix"]] == [
        ("teacher_generated", 8),
        ("real.jsonl", 8),
    ]
    assert {one["source"]: one["terms"] for one in summary["sources"]}["real.jsonl"] == "CC0-1.0"
    assert summary["data"]["mix: real.jsonl"]["rows"] == 8
    again = potstill(
        "run", "r.yaml", "name=other", "generate.filters=null", "--until", "generate", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert "generate: unchanged, taken from" in again.stderr
