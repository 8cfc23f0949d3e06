"""Reading, defaults, hashes, writing and the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from builders.recipes import problems, raw, read
from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe.recipe import (
    Recipe,
    dump_yaml,
    expand,
    json_schema,
    parse_recipe,
    read_recipe,
    resolve_path,
)
from potstill.recipe.stages import stage_types
from potstill.recipe.yaml import load_yaml
from potstill.stages.distill import Distill

FIVE_LINES = "teacher: {model: org/t}\nstudent:\n  from_teacher: {keep_layers: 20}\ndata:\n  train: p.jsonl\n"


def test_reading_recipes_imports_no_torch() -> None:
    code = (
        "import sys, potstill.recipe.recipe, potstill.recipe.defaults, potstill.recipe.plugins\n"
        "potstill.recipe.recipe.json_schema()\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_five_line_recipe_generates_distills_and_evaluates(tmp_path: Path) -> None:
    file = tmp_path / "my first recipe.yaml"
    file.write_text(FIVE_LINES)
    recipe = read_recipe(file)
    assert recipe.name == "my-first-recipe"
    assert recipe.version == 1
    assert recipe.stages == ()
    assert [stage.verb for stage in expand(recipe).stages] == ["generate", "distill", "evaluate"]


def test_a_file_that_is_missing_or_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match="not UTF-8") as caught:
        read_recipe(latin)
    assert caught.value.path == str(latin)
    assert caught.value.fix == "Save it as UTF-8, or name another file."


@pytest.mark.parametrize(("text", "kind"), [("", "empty"), ("- a", "a list"), ("teacher", "a single value")])
def test_a_file_that_is_no_mapping_is_named_with_what_it_is(tmp_path: Path, text: str, kind: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=f"and this is {kind}. Start with the three keys teacher, student"):
        read_recipe(file)


def test_a_byte_order_mark_does_not_hide_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_text("\ufeff" + FIVE_LINES, encoding="utf-8")
    assert read_recipe(file).teacher.model == "org/t"


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError):
        read().seed = 1  # type: ignore[misc]


CONTENT = raw(
    {"generate": {"samples": 2}},
    {
        "distill": {
            "epochs": 2,
            "divergence": {"builders.recipes:tilted": {"beta": 0.1}},
            "temperature": {"linear": {"from": 2, "to": 1}},
        }
    },
    {"distill": {"name": "polish", "steps": 20, "learning_rate": 1e-5}},
    "evaluate",
    name="x",
    seed=3,
)


def shuffled(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, dict):
        order = data.draw(st.permutations(list(value)))
        return {key: shuffled(value[key], data) for key in order}
    return [shuffled(item, data) for item in value] if isinstance(value, list) else value


@given(st.data())
def test_the_hash_does_not_change_with_the_order_of_keys(data: st.DataObject) -> None:
    assert parse_recipe(shuffled(CONTENT, data)).hash() == parse_recipe(CONTENT).hash()


def test_the_hash_does_not_change_with_comments_defaults_spelling_or_the_run_folder(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    hashes = set()
    for text in (
        FIVE_LINES,
        "# a comment\n" + FIVE_LINES,
        FIVE_LINES + "seed: 0\n",
        FIVE_LINES + "version: 1\n",
        FIVE_LINES + "runs: elsewhere\n",
        FIVE_LINES.replace("20", "2e1"),
    ):
        file.write_text(text)
        hashes.add(read_recipe(file).hash())
    assert len(hashes) == 1


def test_the_hash_changes_with_content_and_seed() -> None:
    assert read(seed=1).hash() != read(seed=2).hash()
    assert read({"distill": {"epochs": 1}}).hash() != read({"distill": {"epochs": 2}}).hash()
    assert len(read().hash()) == 64


@pytest.mark.parametrize(
    "recipe",
    [
        read(),
        parse_recipe(CONTENT),
        expand(read(method="seqkd")),
        read(name="1e5", runs="no", student={"from_teacher": {"by": [0, 2, 5]}}),
        read(
            {"finetune": {"data": ["a.jsonl"], "max_grad_norm": None}},
            data={"train": "t", "columns": {"q": "prompt"}},
        ),
    ],
)
def test_a_written_recipe_reads_back_equal(recipe: Recipe) -> None:
    again = parse_recipe(load_yaml(dump_yaml(recipe), "r.yaml"))
    assert again == recipe
    assert again.hash() == recipe.hash()


def test_a_path_is_looked_for_beside_the_recipe_before_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, working = tmp_path / "recipes", tmp_path / "work"
    for folder in (beside, working):
        folder.mkdir()
    monkeypatch.chdir(working)
    (working / "a.jsonl").touch()
    assert resolve_path(beside, "a.jsonl") == working / "a.jsonl"
    (beside / "a.jsonl").touch()
    assert resolve_path(beside, "a.jsonl") == beside / "a.jsonl"
    assert resolve_path(beside, "none.jsonl") == beside / "none.jsonl"
    assert resolve_path(beside, str(working / "a.jsonl")) == working / "a.jsonl"


def test_the_schema_knows_every_stage_key_and_plugin() -> None:
    schema = json_schema()
    stage = schema["properties"]["stages"]["items"]["anyOf"]
    assert set(stage[0]["enum"]) == set(stage_types()) == set(stage[1]["properties"])
    assert "verb" not in schema["$defs"]["Distill"]["properties"]
    assert set(schema["$defs"]["Distill"]["properties"]) == set(Distill.model_fields) - {"verb"}
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert "offline" in schema["$defs"]["StrategyChoice"]["anyOf"][0]["enum"]
    assert set(schema["$defs"]["Span"]["properties"]) == {"from", "to"}


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(RecipeErrors) as caught:
        parse_recipe({"student": {}, "data": {"train": 3}, "sead": 1})
    assert {problem.path for problem in caught.value.problems} == {"teacher", "student", "data.train", "sead"}
    assert caught.value.exit_code == 2


def test_method_and_stages_together_are_refused() -> None:
    assert "both say what to do" in problems("distill", method="kd")["method"]


def test_two_stages_of_one_name_are_refused_with_a_way_out() -> None:
    messages = problems("distill", "distill", "evaluate")
    assert "2 stages are called distill" in messages["stages"]
    assert "- distill: {name: polish}" in messages["stages"]


@pytest.mark.parametrize("name", ["data", "stages", "evaluate"])
def test_a_stage_name_that_an_override_could_not_tell_apart_is_refused(name: str) -> None:
    assert "cannot be called" in problems({"distill": {"name": name}})["stages"]


def test_a_control_needs_a_stage_to_be_the_twin_of() -> None:
    assert "there is none" in problems("generate", "control", "distill")["stages"]
    for stages in (("distill", "control"), ("evaluate", "distill", "control")):
        assert problems(*stages) == {}


@pytest.mark.parametrize("new_tokens", [64, 65])
def test_an_answer_as_long_as_the_row_leaves_no_room_for_a_prompt(new_tokens: int) -> None:
    messages = problems({"generate": {"max_new_tokens": new_tokens}}, data={"train": "t", "max_length": 64})
    assert "leaves no room for a prompt" in messages["data.max_length"]


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_recipe_is_read(path: Path) -> None:
    assert read_recipe(path).stages


def test_there_are_example_recipes() -> None:
    assert EXAMPLES
