"""A student is reused only where its validation rows are the same."""

from __future__ import annotations

from builders import places
from builders.cli import potstill
from builders.jobs import Memory, student, trained
from builders.tiny import tiny_model
from potstill.types import Example

ROWS = [Example(f"r{i}", tuple(range(4 + i, 14 + i)), (False,) * 3 + (True,) * 7) for i in range(12)]


def test_validation_rows_are_part_of_the_key(tmp_path):
    """Validation rows decide which weights are kept, so they are part of the key."""
    start = student(tmp_path / "s", tiny_model())
    teacher = Memory(tiny_model(seed=1))
    keys = {trained(tmp_path, start, teacher, ROWS[:6], validation=v).key for v in (ROWS[6:9], ROWS[9:])}
    assert len(keys) == 2


def test_an_edited_validation_answer_trains_anew(tmp_path):
    """The same through a recipe: answers of validation rows are rewritten, and the stage runs again."""
    rows = places.answered(80)
    place = places.write(tmp_path, rows)
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    parts = places.read(place)
    chosen = {row.id for row in parts.data.validation}
    places.write(place, [r | ({"response": "w99 w98 w97"} if r["id"] in chosen else {}) for r in rows])
    again = potstill("run", "r.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "student: unchanged" in again.stderr
    assert "distill: unchanged" not in again.stderr
