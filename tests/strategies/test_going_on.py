"""Trainings on the student's own text that are stopped and go on, and text that is trained on again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builders.jobs import Memory, events, saying
from builders.tiny import EOS, tiny_model
from builders.written import assert_equal, on_policy
from potstill.errors import Interrupted
from potstill.stages import _strategy
from potstill.store.artifacts import Artifact
from potstill.teachers._remembering import Remembering
from potstill.types import Batch

WAYS = {
    "fresh": {},
    "mixed": {"on_policy_fraction": 0.5},
    "replay": {"replay": 4, "refresh": 0.3},
    "inner epochs": {"collect": 2, "inner_epochs": 2},
    "samples": {"samples": 2, "top_p": 0.9},
    "teacher mixed": {"teacher_share": 0.2},
    "proposals": {"proposals": 5},
    "rows kept beside": {"keep_rows": True},
    "replay with an age": {"replay": 4, "refresh": 0.0, "max_age": 2},
    "a share that rises": {"on_policy_fraction": 0.2, "adaptive": 0.2},
}
# The student moves to a teacher that says little but two ids, away from the rows that are validated on.
RISING = {"learning_rate": 3e-2, "validate_every": 1}


def training_of(folder: Path, way: str, **options: Any) -> Artifact:
    if way == "a share that rises":
        options |= RISING | {"teacher": Memory(saying({5: 1.0, 6: 0.5, EOS: 0.0}))}
    return on_policy(folder, strategy=WAYS[way], **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path, way):
    whole = training_of(tmp_path / "calm", way)

    def signal() -> int:
        logs = list((tmp_path / "store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logs and len(events(logs[0].parent, "step")) >= 3 else 0

    with pytest.raises(Interrupted):
        training_of(tmp_path, way, stop=signal)
    again = training_of(tmp_path, way)
    assert_equal(again, whole)
    decided, wanted = (
        [
            [event.get(key) for key in ("on_policy", "on_policy_fraction", "rollouts", "rollout_age")]
            for event in events(made.path, "step")
        ]
        for made in (again, whole)
    )
    assert decided == wanted
    if way == "a share that rises":
        shares = [share for _, share, *_ in wanted]
        assert shares[0] < shares[3] < shares[5], "it rises before the stop, and behind it"
    if way == "replay with an age":
        assert 0 < max(age or 0 for *_, age in wanted) <= 2


class Counting(Memory):
    """Counts how often the signal of each row is asked for."""

    def __init__(self) -> None:
        super().__init__(tiny_model(seed=1))
        self.asked: Counter[str] = Counter()

    def signal(self, batch: Batch) -> Any:
        self.asked.update(name for name in batch.row_ids if "@" in name)
        return super().signal(batch)


@pytest.mark.parametrize("way", ["replay", "inner epochs"])
def test_the_teacher_reads_each_rollout_once_however_often_it_is_trained_on(tmp_path, way):
    teacher = Counting()
    made = on_policy(tmp_path, strategy=WAYS[way], teacher=teacher)
    assert any(event.get("rollout_age") for event in events(made.path, "step"))
    assert set(teacher.asked.values()) == {1}


class Remembered(Remembering):
    """Remembers, and counts how often its live teacher is asked about each row."""

    def __init__(self, folder: Path) -> None:
        live = Memory(tiny_model(seed=1))
        self.asked = Counter[str]()
        ask = live.signal
        live.signal = lambda batch: self.asked.update(batch.row_ids) or ask(batch)
        super().__init__(live, folder, 128)


def test_a_teacher_that_remembers_is_asked_once_about_rows_and_replayed_rollouts_and_by_a_resumed_run_too(
    tmp_path,
):
    way = {"on_policy_fraction": 0.6, "replay": 4, "refresh": 0.3}
    calm, cut = Remembered(tmp_path / "kept/calm"), Remembered(tmp_path / "kept/cut")
    whole = on_policy(tmp_path / "calm", strategy=way, teacher=calm)

    def signal() -> int:
        logs = list((tmp_path / "store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logs and len(events(logs[0].parent, "step")) >= 3 else 0

    with pytest.raises(Interrupted):
        on_policy(tmp_path, strategy=way, teacher=cut, stop=signal)
    assert_equal(on_policy(tmp_path, strategy=way, teacher=cut), whole)
    assert any(event.get("rollout_age") for event in events(whole.path, "step"))
    for teacher in (calm, cut):
        assert {"@" in name for name in teacher.asked} == {True, False}
        assert set(teacher.asked.values()) == {1}


def test_kept_signals_leave_the_training_as_it_is(tmp_path, monkeypatch):
    """The same rollouts with the teacher asked each time: the same losses to rounding."""
    kept = on_policy(tmp_path / "kept", strategy=WAYS["inner epochs"])
    monkeypatch.setattr(_strategy, "KeptSignals", lambda teacher, returning: teacher)
    asked = on_policy(tmp_path / "asked", strategy=WAYS["inner epochs"])
    losses = [[event["loss"] for event in events(made.path, "step")] for made in (kept, asked)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
