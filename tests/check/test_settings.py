"""A check shows every setting with its value, and where the value comes from."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.tiny import save_tiny
from potstill.recipe.devices import DevicesSpec
from potstill.recipe.inputs import DataSpec, ModelSpec, StudentSpec
from potstill.recipe.stages import stage_types
from potstill.recipe.task import CostsSpec

STAGES = {
    "written": "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 2, learning_rate: 0.01}}, "
    "{control: {}}, {finetune: {}}, {evaluate: {samples: 2}}]",
    "answered": "[{distill: {steps: 2, learning_rate: 0.01}}, {control: {}}, {finetune: {}}, {evaluate: {}}]",
}


@pytest.fixture(params=STAGES)
def checked(tmp_path, request):
    rows = places.prompts(60) if request.param == "written" else places.answered(60)
    places.write(tmp_path, rows, stages=STAGES[request.param])
    return places.checked(tmp_path)


def test_every_setting_is_shown_once(checked):
    expected = {f"teacher.{key}" for key in ModelSpec.model_fields}
    expected |= {f"student.{key}" for key in StudentSpec.model_fields}
    expected |= {f"data.{key}" for key in DataSpec.model_fields}
    expected |= {f"costs.{key}" for key in CostsSpec.model_fields}
    expected |= {f"devices.{key}" for key in DevicesSpec.model_fields}
    for stage in checked.stages:
        keys = set(stage_types()[stage].model_fields) - {"verb", "name"}
        expected |= {f"stages.{stage}.{key}" for key in keys}
    paths = [setting.path for setting in checked.settings]
    assert sorted(paths) == sorted(expected | {"seed", "runs", "trackers"})
    text = checked.text()
    assert all(f"{path.rpartition('.')[2]} " in text for path in paths)


def test_no_setting_stays_auto(checked):
    # The format of rows that the stage does not bring has no effect.
    assert [s.path for s in checked.settings if s.value == "auto"] == ["stages.finetune.format"]
    became = {setting.path for setting in checked.settings if setting.source == "auto"}
    assert became <= {default.path for default in checked.defaults}
    assert {"data.heldout_fraction", "data.max_length", "stages.distill.tokens_per_step"} <= became


def test_what_the_recipe_says_is_marked_and_has_its_value(checked):
    said = {setting.path: setting.value for setting in checked.settings if setting.source == "recipe"}
    assert said["stages.distill.learning_rate"] == 0.01
    assert said["data.train"] == ["rows.jsonl"]
    assert "stages.distill.warmup" not in said
    assert "learning_rate 0.01*" in checked.text()


def test_programs_read_the_same(checked):
    values = json.loads(json.dumps(checked.as_dict()))["settings"]
    assert {"path": "stages.distill.steps", "value": 2, "source": "recipe"} in values
    assert {"path": "stages.distill.warmup", "value": 0.03, "source": "default"} in values


def test_a_plugin_in_place_of_a_model_is_shown_with_its_options(tmp_path):
    save_tiny(tmp_path / "student")
    options = {"tokenizer": str(tmp_path / "student"), "keep": 4}
    teacher = {"builders.outside.teacher:bigram": options}
    places.write(tmp_path, teacher=json.dumps(teacher), student="{model: student}")
    shown = {setting.path: setting.value for setting in places.checked(tmp_path).settings}
    assert shown["teacher"] == teacher
