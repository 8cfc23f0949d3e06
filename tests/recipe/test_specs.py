"""Schedules, plug-ins by name, and values that are fine alone and contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from builders.recipes import problems, read
from potstill.recipe import plugins
from potstill.recipe.options import SCHEDULE
from potstill.recipe.specs import Schedule, value_at
from potstill.stages.distill import Distill


@pytest.fixture(autouse=True)
def _two_strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "strategies"
    folder.mkdir()
    (folder / "offline.py").write_text("def build(): ...\n")
    (folder / "on_policy.py").write_text(
        'STUDENT_WRITES = "on_policy_fraction"\ndef build(*, on_policy_fraction: float = 1.0): ...\n'
    )
    for family in set(plugins.FAMILIES) - {"strategies"}:
        (tmp_path / family).symlink_to(plugins.PACKAGE / family)
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path)


@pytest.mark.parametrize(
    ("stage", "path", "sentence"),
    [
        ({"distill": {"epochs": 1, "steps": 2}}, "steps", "both say how long to train"),
        ({"distill": {"strategy": "on_policy", "ce_weight": 0.5}}, "ce_weight", "on its own mistakes"),
        (
            {"distill": {"strategy": "on_policy", "ce_weight": {"linear": {"from": 0.5, "to": 0}}}},
            "ce_weight",
            "on its own mistakes",
        ),
        (
            {"distill": {"strategy": {"on_policy": {"on_policy_fraction": 0}}}},
            "strategy",
            "never lets the student write",
        ),
        ({"generate": {"sampling_temperature": 0, "samples": 2}}, "samples", "the same text"),
        ({"generate": {"sampling_temperature": 0, "top_p": 0.9}}, "top_p", "has no effect"),
        ({"generate": {"sampling_temperature": 0, "top_k": 9}}, "top_k", "has no effect"),
        ({"finetune": {"limit": 9}}, "limit", "has no effect without data"),
        ({"evaluate": {"metrics": ["speed", "speed"]}}, "metrics", "names a metric twice"),
    ],
)
def test_options_that_cancel_or_contradict_are_refused(stage: Any, path: str, sentence: str) -> None:
    messages = problems(stage)
    verb = next(iter(stage))
    assert list(messages) == [f"stages.{verb}.{path}"]
    assert sentence in messages[f"stages.{verb}.{path}"]


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "on_policy"},
        {"strategy": "on_policy", "ce_weight": 0},
        {"strategy": {"on_policy": {"on_policy_fraction": 0.5}}, "ce_weight": 0.5},
    ],
)
def test_hard_labels_are_accepted_where_the_data_is_mixed_in_or_their_share_is_zero(options: Any) -> None:
    assert problems({"distill": options}) == {}


def test_an_unknown_strategy_and_its_wrong_option_are_reported() -> None:
    messages = problems({"distill": {"strategy": "onpolicy"}})
    assert "no strategy is called 'onpolicy'; did you mean on_policy?" in messages["stages.distill.strategy"]
    messages = problems({"distill": {"strategy": {"on_policy": {"fraction": 1}}}})
    assert "did you mean on_policy_fraction?" in messages["stages.distill.strategy.on_policy.fraction"]
    messages = problems({"distill": {"strategy": {"name": "onpolicy", "options": {}}}})
    assert "did you mean on_policy?" in messages["stages.distill.strategy"]
    messages = problems({"distill": {"strategy": {"name": "on_policy", "on_policy_fraction": 1}}})
    assert "{NAME: {on_policy_fraction: VALUE}}" in messages["stages.distill.strategy.on_policy_fraction"]


def test_a_schedule_starts_and_ends_where_it_says() -> None:
    for shape in ("linear", "cosine"):
        stage = read({"distill": {"temperature": {shape: {"from": 4, "to": 1}}}}).stages[0]
        assert isinstance(stage, Distill)
        values = [value_at(stage.temperature, fraction / 10) for fraction in range(11)]
        assert values[0] == pytest.approx(4)
        assert values[5] == pytest.approx(2.5)
        assert values[10] == pytest.approx(1)
        assert values == sorted(values, reverse=True)
        assert isinstance(stage.temperature, Schedule)
    assert value_at(2.0, 0.3) == 2.0


SPAN = {"from": 4, "to": 1.5}
SHAPES = [
    {"linear": SPAN}, {"cosine": SPAN}, {}, {"linear": 4}, {"line": SPAN}, {"linear": {"from": 4}}, 4, "linear",
    {"linear": SPAN | {"by": 1}}, {"linear": SPAN, "cosine": SPAN}, {"cosine": {"from": True, "to": 1}},
    {"cosine": {"from": "4", "to": 1}}, {"cosine": {"from": float("nan"), "to": 1}}, None,
]  # fmt: skip


@pytest.mark.parametrize("value", SHAPES, ids=str)
def test_an_option_of_a_plugin_and_a_key_of_a_stage_take_the_same_schedules(value: object) -> None:
    """Options are checked without pydantic, keys of a stage with it."""
    try:
        Schedule.model_validate(value)
        accepted = True
    except ValidationError:
        accepted = False
    assert SCHEDULE.fits(value) is accepted


def test_a_hard_label_share_of_one_is_allowed_and_noted() -> None:
    (stage,) = read({"distill": {"ce_weight": 1}}).stages
    assert "stages.distill.ce_weight" in next(stage.notes())
    assert not [
        note for stage in read({"distill": {"ce_weight": 0.5}}, "finetune").stages for note in stage.notes()
    ]


def test_a_hard_label_share_of_zero_means_zero() -> None:
    stage = read({"distill": {"ce_weight": 0}}).stages[0]
    assert isinstance(stage, Distill)
    assert stage.ce_weight == 0.0


def test_contradictions_of_two_stages_are_both_reported() -> None:
    messages = problems({"distill": {"epochs": 1, "steps": 1}}, {"evaluate": {"metrics": ["speed", "speed"]}})
    assert set(messages) == {"stages.distill.steps", "stages.evaluate.metrics"}
