"""What `potstill explain` says: of everything that a recipe can hold, and true."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest

from builders.cli import potstill
from potstill.errors import RecipeError
from potstill.recipe import yaml
from potstill.recipe.options import SCHEDULE
from potstill.recipe.plugins import plugins
from potstill.recipe.recipe import Recipe, parse_recipe
from potstill.recipe.reference import EXAMPLES, FAMILIES, Entry, entries, explain
from potstill.recipe.stages import stage_types
from potstill.recipe.training import Training

LEAST = {"teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"train": "r.jsonl"}}
TRAINING = set(Training.model_fields) - {"verb", "name", "best_by"}
VALUES = [entry for entry in entries().values() if entry.example]
QUICK = """
import sys
from potstill.cli import main
try:
    main(["explain", "distill.temperature"])
finally:
    assert "torch" not in sys.modules
"""


def with_example(entry: Entry) -> Any:
    """The smallest recipe that holds an entry's example."""
    raw: Any = copy.deepcopy(LEAST)
    if entry.example.startswith("- "):
        stage = yaml.load_value(entry.example.removeprefix("- "), "")
        verb = stage if isinstance(stage, str) else next(iter(stage))
        return raw | {"stages": ["distill", stage] if verb == "control" else [stage]}
    piece = yaml.load_yaml(entry.example, entry.path)
    if entry.path.startswith("data."):
        piece["data"] = LEAST["data"] | piece["data"]
    if ".prompt." in entry.path:
        piece = {side: LEAST[side] | about for side, about in piece.items()}
    return raw | piece


@pytest.mark.parametrize("entry", VALUES, ids=lambda entry: entry.path)
def test_an_example_is_a_piece_of_a_recipe_that_is_read(entry: Entry) -> None:
    parse_recipe(with_example(entry))


@pytest.mark.parametrize("entry", VALUES, ids=lambda entry: entry.path)
def test_an_example_holds_the_key_that_it_explains(entry: Entry) -> None:
    key = entry.path.rpartition(".")[2]
    method = entry.path.startswith("methods.")
    assert method or key in str(with_example(entry))


def test_every_option_of_a_teacher_is_explained() -> None:
    """An option without an example was no key that `explain` knew, and stood on no page."""
    options = {
        f"teacher.{option.name}"
        for name, signature in plugins("teachers").items()
        for option in signature.options
        if name != "fixed"  # for tests
    }
    assert not options - entries().keys()


def test_every_key_has_an_example_a_line_and_a_type_and_no_example_is_left_over() -> None:
    families = (*FAMILIES, "methods", "recipe")
    assert [entry.path for entry in entries().values() if not entry.example] == [
        path for path in entries() if path in families
    ]
    assert all(entry.meaning and entry.type for entry in entries().values())
    assert not [entry.path for entry in entries().values() if "\n" in entry.meaning + entry.example]
    given = yaml.load_yaml(EXAMPLES.read_text(), "examples")
    shared = {f"training.{key}" for key in TRAINING}
    assert set(given) - set(entries()) == shared - set(entries())


def test_every_key_of_every_spec_is_there() -> None:
    paths = set(entries())
    assert set(Recipe.model_fields) <= paths
    for verb, stage in stage_types().items():
        assert {f"{verb}.{key}" for key in stage.model_fields if key != "verb"} <= paths
    for section, entry in entries().items():
        assert set(entry.keys) <= paths, section


def test_every_plug_in_is_there_with_the_options_of_its_signature() -> None:
    for family, (folder, _) in FAMILIES.items():
        for name, signature in plugins(folder).items():
            entry = explain(f"{family}.{name}")
            assert entry.meaning == signature.purpose
            assert [key.rpartition(".")[2] for key in entry.keys] == [o.name for o in signature.options]
            for option in signature.options:
                shown = explain(f"{family}.{name}.{option.name}")
                assert yaml.load_value(shown.default, "") == option.default
                assert ("a schedule" in shown.type) == (SCHEDULE in option.kinds)


def test_every_option_of_a_served_teacher_is_explained_as_a_recipe_writes_it() -> None:
    options = plugins("teachers")["served"].options
    for option in options:
        entry = explain(f"teacher.{option.name}")
        assert entry.meaning not in ("", f"An option of teacher.{option.name}")
        assert entry.path in explain("teacher").keys
    assert explain("teacher.key_env").meaning.startswith("The environment variable that holds the key")
    assert explain("teacher.limit_field").default == "max_tokens"
    assert explain("teacher.price").example == (
        "teacher: {endpoint: 'https://api.openai.com/v1', model: gpt-4o-mini, price: {input: 0.15, output: 0.6}}"
    )


def test_options_of_an_engine_are_explained_by_its_docstring() -> None:
    assert explain("engines.openai.patience").meaning == (
        "Seconds for which the endpoint may refuse everything, or ask to wait."
    )


@pytest.mark.parametrize(
    ("path", "kind", "default"),
    [
        ("distill.temperature", "a number above 0 or a schedule such as {linear: {from: 4, to: 1}}", "1.0"),
        ("stages.distill.temperature", None, "1.0"),
        ("evaluate.resamples", "a whole number from 100", "2000"),
        ("data.train", "text or a list, each text", ""),
        ("data.heldout_fraction", "a number above 0 below 1 or auto", "auto"),
        ("distill.betas", "a list of 2, each a number from 0 below 1", "[0.9, 0.95]"),
        ("distill.checkpoint_every", "a whole number from 1 or text such as 90s or 1h30m or auto", "auto"),
        ("data.columns", "a mapping", "{}"),
        ("data.on_bad_row", "error or skip", "error"),
        ("student.from_teacher.keep_layers", "a whole number from 1 or null", "null"),
        ("teacher", "a mapping or package.module:function", ""),
    ],
)
def test_types_and_defaults_are_in_words(path: str, kind: str | None, default: str) -> None:
    entry = explain(path)
    assert entry.type == (kind or entry.type)
    assert entry.default == default


def test_defaults_are_those_of_a_recipe_that_leaves_the_key_out() -> None:
    for verb in stage_types():
        raw = LEAST | {"stages": ["distill", verb] if verb == "control" else [verb]}
        stage = parse_recipe(raw).stages[-1].model_dump(mode="json")
        for key, value in stage.items():
            below = explain(f"{verb}.{key}").keys if key != "verb" else ()
            if below:  # a section: its keys have the defaults
                value, paths = value or {}, [path for path in below if value]
                assert {p: yaml.load_value(explain(p).default, "") for p in paths} == {
                    f"{verb}.{key}.{name}": default for name, default in value.items()
                }
            elif key != "verb":
                assert yaml.load_value(explain(f"{verb}.{key}").default, "") == value, key


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("distill.temprature", "distill.temperature"),
        ("temperature", "distill.temperature"),
        ("distill.lr", "distill.learning_rate"),
        ("lr", "control.learning_rate or distill.learning_rate or finetune.learning_rate"),
        ("jsd", "divergences.jsd"),
        ("divergences.renji", "divergences.renyi"),
        ("batch-size", "control.tokens_per_step or distill.tokens_per_step or finetune.tokens_per_step"),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest(path: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        explain(path)
    assert str(caught.value) == f"{path}: no key of a recipe has this path. Did you mean {near}?"


def test_a_path_that_is_near_to_nothing_is_answered_with_all_sections(tmp_path) -> None:
    done = potstill("explain", "zzz", cwd=tmp_path)
    assert done.returncode == 2
    assert "There are version, name, seed, teacher," in done.stderr


def test_the_command_prints_the_entry_and_needs_no_torch(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", QUICK], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == explain("distill.temperature").text() + "\n"
    shown = json.loads(potstill("explain", "divergences.jsd", "--json", cwd=tmp_path).stdout)
    assert shown["keys"] == ["divergences.jsd.beta", "divergences.jsd.normalize"]
    assert shown["example"] == "- distill: {divergence: {jsd: {beta: 0.5, normalize: false}}}"


def test_a_section_lists_its_keys_and_no_path_lists_all_sections(tmp_path) -> None:
    listed = potstill("explain", "data", cwd=tmp_path).stdout
    assert "data.heldout " in listed
    assert "Rows to measure on" in listed
    everything = potstill("explain", cwd=tmp_path).stdout
    assert all(f"    {name} " in everything for name in (*Recipe.model_fields, *stage_types(), *FAMILIES))


@pytest.mark.parametrize("path", ["recipe", "distill", "distill.best_by", "divergences.jsd"])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_in_a_terminal_an_entry_keeps_within_its_width_and_loses_no_word(path, width) -> None:
    """What has no blank, such as a long key, stays whole."""
    entry = explain(path)
    wrapped = entry.text(width)
    assert wrapped.split() == entry.text().split()
    assert [line for line in wrapped.splitlines() if len(line) > width and " " in line.strip()] == []
