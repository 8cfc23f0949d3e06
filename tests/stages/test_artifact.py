"""How an artifact of a stage is built."""

from __future__ import annotations

import pytest

from builders.jobs import Memory, context
from builders.tiny import tiny_model
from potstill.stages import _artifact
from potstill.store.artifacts import read


def test_time_before_an_interruption_is_counted(tmp_path, monkeypatch):
    """5 seconds before the interruption and 2 behind it are 7, also for who reads the artifact later."""
    now = iter([0.0, 5.0, 100.0, 102.0])
    monkeypatch.setattr(_artifact.time, "monotonic", lambda: next(now))
    where = context(tmp_path, Memory(tiny_model()))

    def stopped(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _artifact.produce(where, "train", "distill", {"a": 1}, stopped)
    made = _artifact.produce(where, "train", "distill", {"a": 1}, lambda folder: {"steps": 3})
    assert made.facts["seconds"] == read(made.path).facts["seconds"] == 7.0
    assert made.facts["steps"] == 3
    assert [file.name for file in made.path.iterdir()] == ["manifest.json"]
