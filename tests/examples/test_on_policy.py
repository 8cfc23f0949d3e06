"""The example recipes of on-policy methods: read as they stand, and run on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from builders import places
from builders.cli import potstill
from potstill.recipe.methods import METHODS
from potstill.recipe.recipe import parse_recipe, read_recipe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = {
    "generate": {"max_new_tokens": 5},
    "evaluate": {"samples": 4, "resamples": 100, "metrics": ["likelihood"]},
}


def distills(stages):
    return [
        options
        for stage in stages
        if isinstance(stage, dict)
        for verb, options in stage.items()
        if verb == "distill"
    ]


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_an_example_holds_the_settings_of_its_method(name):
    recipe = read_recipe(EXAMPLES / f"{name}.yaml")
    assert [stage.name for stage in recipe.stages] == ["generate", "warm_up", "distill", "evaluate"]
    (_, published), (_, written) = (
        distills(METHODS[name].stages),
        distills(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())["stages"]),
    )
    same = {key: value for key, value in published.items() if key != "strategy"}
    sizes = {"collect", "inner_epochs", "max_new_tokens"}
    for key, value in same.items():
        assert written[key] == value, key
    for key, value in published["strategy"]["on_policy"].items():
        assert key in sizes or written["strategy"]["on_policy"][key] == value, key


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_an_example_runs_on_tiny_models(name, tmp_path):
    places.write(tmp_path)
    recipe = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    recipe |= {
        "teacher": {"model": "teacher"},
        "student": {"from_teacher": {"keep_layers": 1, "by": "uniform"}},
        "data": {"train": "rows.jsonl"},
    }
    for stage in recipe["stages"]:
        ((verb, options),) = stage.items()
        options |= SMALL.get(verb, {"steps": 2, "tokens_per_step": 24})
        if "strategy" in options:
            options["strategy"]["on_policy"]["max_new_tokens"] = 5
            options["guards"] = {"truncation": None, "window": 10}
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    done = potstill("run", f"{name}.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    block = places.summary(tmp_path, name)["on_policy"]["distill"]
    assert block["steps"] == 2
    assert 0 <= block["overlap"]["last"] <= 1
    assert "start" in block


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_recipe(name):
    recipe = parse_recipe(
        {
            "teacher": {"model": "t"},
            "student": {"model": "s"},
            "data": {"train": "r"},
            "stages": list(METHODS[name].stages),
        }
    )
    assert recipe.stages
    assert "arXiv" in METHODS[name].source or name in ("sft", "opd")
