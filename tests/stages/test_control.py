"""A control: a twin with the same budget, and out of the run's totals."""

from __future__ import annotations

import pytest

from builders import places
from builders.cli import potstill
from potstill.runs import setup

THREE = "[{distill: {steps: 3, learning_rate: 0.01}}, {finetune: {steps: 2}}, {control: {}}, {evaluate: {}}]"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    place = places.write(tmp_path_factory.mktemp("three"), places.answered(60), stages=THREE)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_the_control_has_the_budget_of_its_twin(three):
    twin, control = places.steps(three, "distill"), places.steps(three, "control")
    assert [s["tokens"] for s in control] == [s["tokens"] for s in twin]
    assert [s["learning_rate"] for s in control] == [s["learning_rate"] for s in twin]


def test_check_names_the_twin_for_the_budget_of_the_control(three):
    values = {d.path: d.value for d in places.checked(three).defaults}
    assert values["stages.control"] == "as distill"


def test_a_control_keeps_its_own_settings(tmp_path):
    stages = "[{distill: {steps: 3, learning_rate: 0.01}}, {control: {steps: 1, learning_rate: 0.5}}]"
    places.write(tmp_path, places.answered(60), stages=stages)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    (only,) = places.steps(tmp_path, "control")
    assert only["learning_rate"] == 0.5


def test_a_control_of_its_own_length_has_automatic_intervals(tmp_path):
    stages = "[{distill: {steps: 12, schedule: linear}}, {control: {steps: 120}}]"
    places.write(tmp_path, places.answered(60), stages=stages)
    opened = setup.open_recipe(tmp_path / "r.yaml")
    distill, control = opened.recipe.stages
    twin = distill.model_copy(update={"validate_every": 2, "checkpoint_every": 1, "learning_rate": 5e-6})
    alike, _ = control.completed(opened.recipe.stages, {"distill": twin})
    assert (alike.steps, alike.schedule) == (120, "linear")
    assert (alike.validate_every, alike.checkpoint_every, alike.learning_rate) == ("auto", "auto", "auto")


def test_a_control_is_no_twin_of_a_stage_on_other_rows(tmp_path):
    stages = "[{finetune: {data: rows.jsonl, steps: 2}}, {control: {}}]"
    places.write(tmp_path, places.answered(60), stages=stages)
    stages = setup.open_recipe(tmp_path / "r.yaml").recipe.stages
    assert stages[1].of(stages) == ""


def test_the_summary_leaves_the_controls_training_out(three):
    total = places.summary(three)["train"]
    steps = places.steps(three, "distill") + places.steps(three, "finetune")
    assert total["steps"] == 5
    assert total["tokens"] == sum(s["tokens"] for s in steps)
    assert total["seconds"] == pytest.approx(sum(s["seconds"] for s in steps))
    assert total["tokens_per_second"] == pytest.approx(total["tokens"] / total["seconds"])
