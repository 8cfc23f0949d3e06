"""What a run notes before it starts, and figures that reach the summary."""

from __future__ import annotations

import json

from builders import places
from builders.cli import potstill


def notes(place) -> str:
    return " ".join(places.read(place).notes)


def test_a_length_above_the_context_is_noted(tmp_path):
    places.write(tmp_path, data="{train: rows.jsonl, max_length: 4000}")
    assert "data.max_length is 4000, the models read 256 tokens" in notes(tmp_path)
    places.write(tmp_path, data="{train: rows.jsonl, max_length: 200}")
    assert "max_length" not in notes(tmp_path)


def test_held_out_prompts_that_are_trained_on_are_noted(tmp_path):
    """Held-out prompts that are training prompts with other answers: said by run, not only by check."""
    rows = places.answered()
    places.write(tmp_path, rows, data="{train: rows.jsonl, heldout: held.jsonl}")
    held = [{"prompt": row["prompt"], "response": "w90 w91"} for row in rows[:20]]
    held += [{"prompt": f"w{100 + i}", "response": "w90"} for i in range(5)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    assert "20 of 25 held-out prompts are training prompts too" in notes(tmp_path)


def test_a_measured_speed_reaches_the_summary(tmp_path):
    stages = "[{evaluate: {metrics: [likelihood, speed], samples: 4, max_new_tokens: 4, resamples: 100}}]"
    places.write(tmp_path, stages=stages)
    done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    speed = json.loads(done.stdout)["summary"]["generation_tokens_per_second"]
    assert set(speed) == {"teacher", "before"}
    assert min(speed.values()) > 0
