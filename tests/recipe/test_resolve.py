"""From a plug-in's name to its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe import resolve

SOURCE = '''
def loss(student_lp, teacher_lp, *, beta: float = 0.5, rows: "int | None" = None):
    """One loss."""
    return beta
'''


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_for_a_test.py").write_text(SOURCE)
    (tmp_path / "plugin_that_fails.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_plugin_from_outside_stands_where_a_built_in_one_would() -> None:
    plugin = resolve.load("divergences", "plugin_for_a_test:loss", {"beta": 0.25, "rows": None})
    assert plugin.value(None, None, beta=0.25) == 0.25
    assert not hasattr(plugin, "partial")


def test_options_of_a_plugin_from_outside_are_checked_on_loading() -> None:
    with pytest.raises(RecipeErrors) as caught:
        resolve.load(
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
    ],
)
def test_code_that_cannot_be_loaded_is_named(name: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=r"cannot be imported|has no function") as caught:
        resolve.load("divergences", name)
    assert sentence in str(caught.value)
    assert caught.value.fix


def test_a_built_in_plugin_is_its_module() -> None:
    assert callable(resolve.load("strategies", "offline").build)


def test_an_unknown_built_in_plugin_is_refused() -> None:
    with pytest.raises(RecipeErrors, match="no strategy is called 'nonesuch'"):
        resolve.load("strategies", "nonesuch")
