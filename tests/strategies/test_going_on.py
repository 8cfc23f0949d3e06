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
from potstill.recipe.on_policy import PolicyGradientSpec, PreferenceSpec, ReferenceSpec, SupervisedSpec
from potstill.recipe.specs import DivergenceChoice
from potstill.stages import _strategy
from potstill.store.artifacts import Artifact
from potstill.teachers._remembering import Remembering
from potstill.train.writer import Writer
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


@pytest.mark.parametrize("polls", [2, 9], ids=["before the first step", "later"])
def test_a_stop_between_collected_steps_keeps_what_was_written(tmp_path, polls, monkeypatch):
    """Two of three steps have their answers: a resumed training neither writes these anew nor skips their rows."""
    way = {"strategy": {"collect": 3, "inner_epochs": 2}, "steps": 8, "validation": ()}
    asked = [0]
    write = Writer.write

    def counted(self, prompts, *args, **options):
        asked[-1] += len(prompts)
        return write(self, prompts, *args, **options)

    monkeypatch.setattr(Writer, "write", counted)
    whole = on_policy(tmp_path / "calm", **way)
    asked.append(0)
    seen = []

    def signal() -> int:
        seen.append(0)
        return 15 if len(seen) >= polls else 0

    with pytest.raises(Interrupted, match=f"stopped at step {0 if polls == 2 else 6} of 8"):
        on_policy(tmp_path, stop=signal, **way)
    again = on_policy(tmp_path, **way)
    assert_equal(again, whole)
    assert asked[0] == asked[1]
    counts = [[event.get("written") for event in events(made.path, "step")] for made in (again, whole)]
    assert counts[0] == counts[1]


def test_ratios_pairs_and_a_reference_go_on_from_what_was_said_when_the_text_was_drawn(tmp_path):
    """Every term at once, stopped in the middle of collected steps that are trained on three times."""
    way = {
        "strategy": {"collect": 2, "inner_epochs": 3, "keep_rows": True, "teacher_share": 0.2, "samples": 2},
        "policy_gradient": PolicyGradientSpec(clip=0.2, whiten=True, importance="cumulative"),
        "divergence": DivergenceChoice(name="reverse_kl"),
        "supervised": SupervisedSpec(ce_weight=0.5),
        "preference": PreferenceSpec(),
        "reference": ReferenceSpec(),
        "own_means": True,
        "packing": True,
        "normalize": "sequence_mean",
        "learning_rate": 1e-2,
        "validation": (),
    }
    whole = on_policy(tmp_path / "calm", **way)
    polls = []

    def signal() -> int:
        polls.append(0)
        return 15 if len(polls) >= 5 else 0

    with pytest.raises(Interrupted):
        on_policy(tmp_path, stop=signal, **way)
    assert_equal(on_policy(tmp_path, **way), whole)
    assert len({event["policy_gradient"] for event in events(whole.path, "step")}) == 6


class Counting(Memory):
    """Counts how often the signal of each row is asked for."""

    def __init__(self) -> None:
        super().__init__(tiny_model(seed=1))
        self.asked: Counter[str] = Counter()
        self.asked_of_rows: Counter[str] = Counter()

    def signal(self, batch: Batch) -> Any:
        self.asked.update(name for name in batch.row_ids if "@" in name)
        self.asked_of_rows.update(name for name in batch.row_ids if "@" not in name)
        return super().signal(batch)


@pytest.mark.parametrize("way", ["replay", "inner epochs"])
def test_the_teacher_reads_each_rollout_once_however_often_it_is_trained_on(tmp_path, way):
    teacher = Counting()
    made = on_policy(tmp_path, strategy=WAYS[way], teacher=teacher)
    assert any(event.get("rollout_age") for event in events(made.path, "step"))
    assert set(teacher.asked.values()) == {1}


def test_the_teacher_reads_a_row_once_a_step_beside_rollouts_of_earlier_steps_too(tmp_path):
    """Rows are scored before the step, and what the teacher said of them is read again in it."""
    teachers = Counting(), Counting()
    gradient = {"policy_gradient": PolicyGradientSpec(), "validation": ()}
    for teacher, way in zip(teachers, ({}, WAYS["replay"]), strict=True):
        folder = tmp_path / str(bool(way))
        made = on_policy(folder, strategy={"keep_rows": True, **way}, teacher=teacher, **gradient)
    assert any(event.get("rollout_age") for event in events(made.path, "step"))
    assert teachers[0].asked_of_rows == teachers[1].asked_of_rows


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
