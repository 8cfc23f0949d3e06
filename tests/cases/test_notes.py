"""What a run should say before it starts, and figures that should not get lost."""

from __future__ import annotations

import json

from cases import places
from e2e.cli import potstill
from potstill.runs import setup


def notes(place) -> str:
    return " ".join(setup.compose(setup.open_recipe(place / "r.yaml")).notes)


def test_a_length_above_the_context_is_cut_without_a_word(tmp_path):
    places.write(tmp_path, data="{train: rows.jsonl, max_length: 4000}")
    assert "data.max_length is 4000, the models read 256 tokens" in notes(tmp_path)
    places.write(tmp_path, data="{train: rows.jsonl, max_length: 200}")
    assert "max_length" not in notes(tmp_path)


def test_memory_is_measured_and_nobody_says_so(tmp_path):
    """Held-out prompts that are training prompts with other answers: said by run, not only by check."""
    rows = places.answered()
    places.write(tmp_path, rows, data="{train: rows.jsonl, heldout: held.jsonl}")
    held = [{"prompt": row["prompt"], "response": "w90 w91"} for row in rows[:20]]
    held += [{"prompt": f"w{100 + i}", "response": "w90"} for i in range(5)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    assert "20 of 25 held-out prompts are training prompts too" in notes(tmp_path)


def test_a_measured_speed_does_not_reach_the_summary(tmp_path):
    stages = "[{evaluate: {metrics: [likelihood, speed], samples: 4, max_new_tokens: 4, resamples: 100}}]"
    places.write(tmp_path, stages=stages)
    done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    speed = json.loads(done.stdout)["summary"]["generation_tokens_per_second"]
    assert set(speed) == {"teacher", "before"}
    assert min(speed.values()) > 0
