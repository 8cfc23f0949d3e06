"""A model is measured once on the same rows: by another run, another metric and an interrupted evaluation too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders import places
from builders.cli import potstill
from builders.hooks import watched
from builders.jobs import Memory, context, student
from builders.tiny import tiny_model
from potstill.data.questions import Question
from potstill.errors import Interrupted
from potstill.evaluate import scores
from potstill.generate import local
from potstill.recipe.specs import MetricChoice
from potstill.stages import _evaluation, _measure
from potstill.types import Example

ROWS = [Example(f"r{i}", tuple(range(4, 24)), (False,) * 12 + (True,) * 8) for i in range(6)]
QUESTIONS = [Question(f"r{i}", (5 + i, 6), (5 + i, 6), "p", "w64", 2) for i in range(6)]


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What was measured: `scores` and `answers`, once a call, and `weights` of a student."""
    made: list[str] = []

    def spy(module: Any, name: str, word: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (made.append(word), original(*a, **k))[1])

    spy(scores, "score", "scores")
    spy(local, "generate", "answers")
    spy(_evaluation.loading, "load", "weights")
    return made


@pytest.fixture
def job(tmp_path) -> _evaluation.Job:
    students = {
        role: student(tmp_path / role, tiny_model(seed=seed))
        for seed, role in enumerate(("before", "after"), 2)
    }
    return _evaluation.Job(
        name="evaluate",
        choices=[MetricChoice(name=name) for name in ("likelihood", "rouge_l")],
        resamples=100,
        students=students,
        examples=ROWS,
        questions=QUESTIONS,
        max_new_tokens=3,
        context=context(tmp_path, Memory(tiny_model(seed=1))),
    )


def figures(job: _evaluation.Job) -> dict[str, Any]:
    return json.loads((_evaluation.evaluate(job).path / "evaluation.json").read_text())["models"]


def test_each_model_is_measured_once(job, calls):
    figures(job)
    assert sorted(calls) == ["answers"] * 3 + ["scores"] * 2 + ["weights"] * 2


def test_another_student_is_all_that_another_run_measures(job, calls, tmp_path):
    before = figures(job)
    calls.clear()
    other = replace(job, students=job.students | {"after": student(tmp_path / "other", tiny_model(seed=9))})
    after = figures(other)
    assert sorted(calls) == ["answers", "scores", "weights"]
    assert after["teacher"] == before["teacher"]
    assert after["before"] == before["before"]
    assert after["after"] != before["after"]


@pytest.mark.parametrize("change", [
    {"resamples": 200},
    {"choices": [MetricChoice(name=name) for name in ("likelihood", "agreement", "rouge_l", "speed")]},
    {"choices": [MetricChoice(name="likelihood")]},
])  # fmt: skip
def test_other_metrics_and_intervals_measure_no_model_again(job, calls, change):
    figures(job)
    calls.clear()
    figures(replace(job, **change))
    assert calls == []


def test_a_metric_that_is_added_measures_what_it_needs_alone(job, calls):
    whole = figures(replace(job, context=context(Path(job.context.setup.base) / "calm", job.teacher)))
    figures(replace(job, choices=[MetricChoice(name="likelihood")]))
    calls.clear()
    assert figures(job) == whole
    assert sorted(calls) == ["answers"] * 3 + ["weights"] * 2


def test_an_evaluation_names_its_measurements(job, tmp_path):
    keys = _evaluation.evaluate(job).facts["measurements"]
    folders = {
        p.name.partition("-")[2]
        for kind in ("scores", "greedy")
        for p in (tmp_path / "store").glob(f"{kind}-*")
    }
    assert {key[:16] for key in keys} == folders
    assert len(keys) == 5


@pytest.mark.parametrize(("change", "measured"), [
    ({"questions": QUESTIONS[:3]}, {"answers": 3}),
    ({"max_new_tokens": 4}, {"answers": 3}),
    ({"examples": ROWS[:3]}, {"scores": 2}),
])  # fmt: skip
def test_other_rows_are_measured(job, calls, change, measured):
    figures(job)
    calls.clear()
    figures(replace(job, **change))
    assert {word: calls.count(word) for word in set(calls) - {"weights"}} == measured


def test_another_teacher_measures_all(job, calls, tmp_path):
    figures(job)
    calls.clear()
    where = context(tmp_path, Memory(tiny_model(seed=5), "another"))
    figures(replace(job, context=where))
    # What a student answers does not depend on the teacher.
    assert sorted(word for word in calls if word != "weights") == ["answers", "scores", "scores"]


@pytest.mark.parametrize("fails", range(5))
def test_an_interrupted_evaluation_goes_on_behind_its_last_whole_measurement(job, calls, monkeypatch, fails):
    """It stops in the n-th of five measurements; then the others are made, and none twice."""
    whole = figures(replace(job, context=context(Path(job.context.setup.base) / "calm", job.teacher)))
    calls.clear()
    produce, begun = _measure.produce, []

    def stopping(context, kind, name, inputs, build, **together):
        begun.append(name)
        if len(begun) > fails:
            raise Interrupted("stopped", signal_number=2)
        return produce(context, kind, name, inputs, build, **together)

    with monkeypatch.context() as patch:
        patch.setattr(_measure, "produce", stopping)
        with pytest.raises(Interrupted):
            figures(job)
    assert len(begun) == fails + 1
    assert figures(job) == whole
    assert sorted(word for word in calls if word != "weights") == ["answers"] * 3 + ["scores"] * 2


def test_a_measurement_that_a_signal_stops_is_not_kept(job, tmp_path):
    teacher = tiny_model(seed=1)
    with watched(teacher) as passes, pytest.raises(Interrupted):
        figures(
            replace(job, context=context(tmp_path, Memory(teacher), lambda: 15 if len(passes) > 1 else 0))
        )
    assert not list((tmp_path / "store").glob("greedy-*"))


def test_an_ablation_measures_teacher_and_untrained_student_once(tmp_path, calls):
    places.write(
        tmp_path,
        stages="[{distill: {steps: 1}}, {evaluate: {samples: 4, max_new_tokens: 3, resamples: 100}}]",
    )
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    calls.clear()
    for number, change in enumerate(("distill.temperature=2.0", "distill.divergence=reverse_kl")):
        done = potstill("run", "r.yaml", f"name=a{number}", change, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert [word for word in calls if word != "weights"] == ["scores", "answers"]
        assert places.summary(tmp_path, f"a{number}")["before"] == places.summary(tmp_path)["before"]
        calls.clear()
