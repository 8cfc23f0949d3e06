"""What an earlier student may be reused for."""

from __future__ import annotations

from dataclasses import replace

from cases import places
from cases.jobs import Memory, job, student, world
from e2e.cli import potstill
from potstill.runs import setup
from potstill.stages import train
from potstill.types import Example
from tiny import tiny_model

ROWS = [Example(f"r{i}", tuple(range(4 + i, 14 + i)), (False,) * 3 + (True,) * 7) for i in range(12)]


def test_weights_chosen_on_other_validation_rows_come_back(tmp_path):
    """Validation rows decide which weights are kept, so they are part of the key."""
    start = student(tmp_path / "s", tiny_model())
    first = job(start, Memory(tiny_model(seed=1)), ROWS[:6])
    keys = {train.run(world(tmp_path), replace(first, validation=v)).key for v in (ROWS[6:9], ROWS[9:])}
    assert len(keys) == 2


def test_an_edited_validation_answer_changes_nothing(tmp_path):
    """The same through a recipe: answers of validation rows are rewritten, and the stage runs again."""
    rows = places.answered(80)
    place = places.write(tmp_path, rows)
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    parts = setup.compose(setup.open_recipe(place / "r.yaml"))
    chosen = {row.id for row in parts.data.validation}
    places.write(place, [r | ({"response": "w99 w98 w97"} if r["id"] in chosen else {}) for r in rows])
    again = potstill("run", "r.yaml", cwd=place)
    assert "distill: unchanged" not in again.stderr
