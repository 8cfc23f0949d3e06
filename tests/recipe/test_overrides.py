"""Overrides on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.recipes import raw
from potstill.errors import RecipeErrors
from potstill.recipe.overrides import apply
from potstill.recipe.recipe import Recipe, expand, parse_recipe, read_recipe
from potstill.recipe.yaml import load_value, to_yaml
from potstill.stages.distill import Distill

TOP = tuple(Recipe.model_fields)
STAGED = raw("generate", {"distill": {"epochs": 1}}, {"distill": {"name": "polish"}}, "evaluate")


def wrong(*overrides: str) -> list[str]:
    with pytest.raises(RecipeErrors) as caught:
        apply(STAGED, overrides, TOP)
    return [str(problem) for problem in caught.value.problems]


def test_stages_and_sections_are_reached_by_name() -> None:
    changed = apply(
        STAGED,
        [
            "distill.epochs=2",
            "polish.steps=400",
            "stages.generate.samples=3",
            "teacher.dtype=float32",
            "data.template.kwargs.enable_thinking=false",
            "polish.temperature={linear: {from: 2, to: 1}}",
            "polish.name=finish",
            "finish.learning_rate=1e-5",
            "seed=7",
        ],
        TOP,
    )
    recipe = parse_recipe(changed)
    assert [stage.name for stage in recipe.stages] == ["generate", "distill", "finish", "evaluate"]
    first, last = recipe.stages[1], recipe.stages[2]
    assert isinstance(first, Distill)
    assert isinstance(last, Distill)
    assert (first.epochs, last.steps, last.learning_rate) == (2, 400, 1e-5)
    assert recipe.data.template is not None
    assert recipe.data.template.kwargs == {"enable_thinking": False}
    assert recipe.seed == 7


def test_the_recipe_that_is_overridden_stays_as_it_was() -> None:
    before = to_yaml(STAGED)
    apply(STAGED, ["distill.epochs=2", "data.limit=5", "generate.samples=2"], TOP)
    assert to_yaml(STAGED) == before


@pytest.mark.parametrize("method", [None, "kd"])
def test_stages_that_are_only_implied_can_be_overridden(tmp_path: Path, method: str | None) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(to_yaml(raw() | ({"method": method} if method else {})))
    recipe = read_recipe(file, ["distill.steps=5"])
    expected = expand(read_recipe(file))
    assert [stage.verb for stage in recipe.stages] == [stage.verb for stage in expected.stages]
    assert isinstance(recipe.stages[1], Distill)
    assert recipe.stages[1].steps == 5
    assert recipe.method is None


def test_an_override_that_reaches_nothing_is_refused_with_the_nearest_name() -> None:
    (sentence,) = wrong("distil.epochs=2")
    assert "distil.epochs: the override reaches nothing; did you mean distill?" in sentence
    assert "polish" in sentence
    with pytest.raises(RecipeErrors, match="did you mean epochs"):
        parse_recipe(apply(STAGED, ["distill.epoch=2"], TOP))
    with pytest.raises(RecipeErrors, match="did you mean from_teacher"):
        parse_recipe(apply(STAGED, ["student.from_teachr.keep_layers=2"], TOP))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("distill.epochs", "is not of the form key.path=value"),
        ("=2", "is not of the form key.path=value"),
        ("distill..epochs=2", "is not of the form key.path=value"),
        ("distill=2", "is a whole stage"),
        ("teacher.model.name=x", "teacher.model is 'org/teacher', so nothing can be set inside it"),
        ("seed=[1", "override seed:1:3: the YAML cannot be read"),
        ("distill.temperature={a: 1, a: 2}", "given twice"),
    ],
)
def test_a_broken_override_says_what_is_wrong(override: str, sentence: str) -> None:
    assert sentence in wrong(override)[0]


def test_all_broken_overrides_are_reported() -> None:
    assert len(wrong("distil.epochs=2", "seed=3", "nothing", "x={a: 1, a: 2}")) == 3


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("ab1e5.:-{[# ", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(VALUES)
def test_a_value_survives_the_way_through_an_override(value: object) -> None:
    changed = apply(STAGED, [f"polish.temperature={to_yaml(value)}"], TOP)
    assert changed["stages"][2]["distill"]["temperature"] == value
    assert load_value(to_yaml(value), "x") == value


def test_an_override_of_a_stage_that_the_recipe_lacks_says_how_to_add_it() -> None:
    """Not that it reaches nothing, with a list of everything else."""
    bare = STAGED | {"stages": ["generate", "distill"]}
    with pytest.raises(RecipeErrors) as caught:
        apply(bare, ["evaluate.metrics=[speed]"], TOP)
    problem = "evaluate.metrics: the recipe has no evaluate stage. Add `- evaluate` to its stages."
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("override", "home"),
    [
        ("temperature=2", "temperature belongs in a distill stage"),
        ("epochs=2", "epochs belongs in a control stage, in a distill stage or in a finetune stage"),
        ("metrics=x", "metrics belongs in an evaluate stage"),
        ("dtype=float32", "dtype belongs under teacher"),
        ("heldout=5", "heldout belongs under data"),
    ],
)
def test_a_key_without_its_section_is_refused_with_the_section(tmp_path, override, home) -> None:
    changed = apply(STAGED, [override], TOP)
    with pytest.raises(RecipeErrors) as caught:
        parse_recipe(changed)
    assert [home in str(problem) for problem in caught.value.problems] == [True], str(caught.value)
    assert "did you mean generate" not in str(caught.value)
