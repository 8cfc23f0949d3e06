"""From a plug-in's name to its code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from builders.recipes import problems, read
from potstill.errors import RecipeError, RecipeErrors
from potstill.objectives.plugins import Divergence
from potstill.recipe import plugins
from potstill.stages._objective import objective_of
from potstill.stages.distill import Distill

SOURCE = '''
SUPPORTS = frozenset({"dense", "topk"})
POWER: int = 1 + 1


def loss(student_lp, teacher_lp, *, beta: float = 0.5, rows: "int | None" = None):
    """One loss."""
    return beta


def value_and_partial(student_lp, teacher_lp):
    return 1, 2
'''


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_for_a_test.py").write_text(SOURCE)
    (tmp_path / "plugin_that_fails.py").write_text(
        "import no_such_module_anywhere\ndef loss(*, beta: float = 1): ...\n"
    )
    (tmp_path / "plugin_with_a_typo.py").write_text("def loss(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_for_a_test", raising=False)


def test_a_plugin_from_outside_stands_where_a_built_in_one_would() -> None:
    plugin = plugins.load("divergences", "plugin_for_a_test:loss", {"beta": 0.25, "rows": None})
    assert plugin.value(None, None, beta=0.25) == 0.25
    assert plugin.__name__ == "plugin_for_a_test:loss"
    assert {"dense", "topk"} == plugin.SUPPORTS
    assert plugin.POWER == 2
    assert not hasattr(plugin, "partial")


def test_a_divergence_from_outside_may_be_given_with_its_partial() -> None:
    plugin = plugins.load("divergences", "plugin_for_a_test:value_and_partial")
    assert plugin.value_and_partial(None, None) == (1, 2)
    assert not hasattr(plugin, "value")


def test_a_divergence_from_outside_is_one_for_the_objective() -> None:
    plugin = plugins.load("divergences", "plugin_for_a_test:loss")
    divergence = Divergence.from_module(plugin)
    assert divergence.name == "plugin_for_a_test:loss"
    assert divergence.supports == {"dense", "topk"}


def test_a_recipe_that_names_a_plugin_from_outside_is_checked_without_importing_it() -> None:
    choice = {"plugin_that_fails:loss": {"bta": 1}}
    found = problems({"distill": {"divergence": choice}})
    assert "did you mean beta?" in found["stages.distill.divergence.plugin_that_fails:loss.bta"]
    assert problems({"distill": {"divergence": "plugin_that_fails:loss"}}) == {}
    assert "plugin_that_fails" not in sys.modules


def test_an_edit_of_a_plugin_from_outside_changes_what_identifies_its_stage(tmp_path: Path) -> None:
    (stage,) = read({"distill": {"divergence": {"plugin_for_a_test:loss": {"beta": 0.25}}}}).stages
    assert isinstance(stage, Distill)

    def identity() -> list[Any]:
        return objective_of(stage).identity["divergence"]

    before = identity()
    assert before[:2] == ["plugin_for_a_test:loss", {"beta": 0.25}]
    assert identity() == before
    (tmp_path / "plugin_for_a_test.py").write_text(SOURCE.replace("return beta", "return 2 * beta"))
    assert identity()[:2] == before[:2]
    assert identity() != before


def test_one_of_our_own_plugins_is_identified_by_name_and_options() -> None:
    assert plugins.identity("divergences", "jsd", {"beta": 0.25}) == ["jsd", {"beta": 0.25}]


def test_what_a_plugin_from_outside_states_is_known_without_importing_it() -> None:
    signature = plugins.find("divergences", "plugin_for_a_test:loss")
    assert signature.constants == {"SUPPORTS": {"dense", "topk"}}
    assert "plugin_for_a_test" not in sys.modules


def test_options_of_a_plugin_from_outside_are_checked_on_loading() -> None:
    with pytest.raises(RecipeErrors) as caught:
        plugins.load(
            "divergences", "plugin_for_a_test:loss", {"bta": 1, "rows": 1.5}, "stages.distill.divergence"
        )
    paths = [problem.path for problem in caught.value.problems]
    assert paths == [f"stages.distill.divergence.plugin_for_a_test:loss.{key}" for key in ("bta", "rows")]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_module_anywhere:loss", "cannot be imported"),
        ("plugin_that_fails:loss", "No module named 'no_such_module_anywhere'"),
        ("plugin_for_a_test:los", "has no function los; did you mean loss?"),
        ("plugin_with_a_typo:loss", "plugin_with_a_typo cannot be imported: invalid syntax"),
    ],
)
def test_code_that_cannot_be_loaded_is_named(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be imported|has no function") as caught:
        plugins.load("divergences", name)
    assert sentence in str(caught.value)
    (problem,) = getattr(caught.value, "problems", [caught.value])
    assert problem.fix


def test_a_built_in_plugin_is_its_module() -> None:
    assert callable(plugins.load("strategies", "offline").build)


def test_an_unknown_built_in_plugin_is_refused() -> None:
    with pytest.raises(RecipeErrors, match="no strategy is called 'nonesuch'"):
        plugins.load("strategies", "nonesuch")
