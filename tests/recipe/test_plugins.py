"""Plug-ins: read from source, checked, and loaded by name."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

from builders.recipes import problems, read
from potstill.errors import RecipeError, RecipeErrors
from potstill.objectives.token import Divergence
from potstill.recipe import plugins
from potstill.stages._objective import objective_of
from potstill.stages.distill import Distill

OURS = '''"""Jensen-Shannon divergence, weighted."""

raise RuntimeError("nobody may import this")

from typing import Literal

SUPPORTS = frozenset({"dense"})
LEARNING_RATE: tuple[float, str] = (5e-6, "why")
MADE = ODD * 2
lower = 1


def value(student_lp, teacher_lp, *, beta: float = 0.5, side: Literal["a", "b"] = "a",
          rows: "int | None" = None, normalize: bool = False, label: str, shape: Odd = ODD):
    """Text of the function."""


def partial(student_lp, *, other): ...
'''

OUTSIDE = '''
SUPPORTS = frozenset({"dense", "topk"})
POWER: int = 1 + 1


def loss(student_lp, teacher_lp, *, beta: float = 0.5, rows: "int | None" = None):
    """One loss."""
    return beta


def value_and_partial(student_lp, teacher_lp):
    return 1, 2
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "divergences"
    folder.mkdir()
    (folder / "jsd.py").write_text(OURS)
    (folder / "plain.py").write_text("def value(student_lp, teacher_lp): ...\n")
    (folder / "tools.py").write_text("def help_out(): ...\n")
    (folder / "__init__.py").write_text("def value(): ...\n")
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path)
    return folder


@pytest.fixture(autouse=True)
def _outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_for_a_test.py").write_text(OUTSIDE)
    (tmp_path / "plugin_that_fails.py").write_text(
        "import no_such_module_anywhere\ndef loss(*, beta: float = 1): ...\n"
    )
    (tmp_path / "plugin_with_a_typo.py").write_text("def loss(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_for_a_test", raising=False)


def wrong(name: str, **options: object) -> dict[str, str]:
    problems = plugins.check_options("divergences", name, options, "d")
    return {problem.path: f"{problem.message} {problem.fix}".strip() for problem in problems}


@pytest.mark.usefixtures("package")
def test_a_file_is_a_plugin_by_its_public_function_and_is_never_imported() -> None:
    signatures = plugins.plugins("divergences")
    assert list(signatures) == ["jsd", "plain"]
    assert signatures["jsd"].purpose == "Jensen-Shannon divergence, weighted."
    assert [(o.name, o.required, o.default) for o in signatures["jsd"].options] == [
        ("beta", False, 0.5),
        ("side", False, "a"),
        ("rows", False, None),
        ("normalize", False, False),
        ("label", True, None),
        ("shape", False, None),
    ]
    assert signatures["plain"].options == ()


@pytest.mark.usefixtures("package")
def test_a_signature_carries_the_uppercase_literals_of_its_file() -> None:
    signature = plugins.plugins("divergences")["jsd"]
    assert signature.constants == {"SUPPORTS": {"dense"}, "LEARNING_RATE": (5e-6, "why")}
    assert plugins.plugins("divergences")["plain"].constants == {}


def test_a_divergence_may_be_given_by_its_value_with_the_partial(package: Path) -> None:
    (package / "both.py").write_text("def value_and_partial(s, t, *, beta: float = 1): ...\n")
    assert [option.name for option in plugins.plugins("divergences")["both"].options] == ["beta"]


@pytest.mark.usefixtures("package")
def test_a_family_without_a_folder_has_no_plugins() -> None:
    assert plugins.plugins("teachers") == {}


@pytest.mark.usefixtures("package")
def test_options_that_fit_are_silent() -> None:
    assert wrong("jsd", label="x") == {}
    assert wrong("jsd", label="x", beta=1, side="b", rows=3, normalize=True, shape=[1]) == {}
    assert wrong("jsd", label="x", rows=None) == {}
    assert wrong("plain") == {}


@pytest.mark.usefixtures("package")
def test_options_that_do_not_fit_are_all_reported() -> None:
    messages = wrong("jsd", bta=1, beta="x", side="c", rows=1.5, normalize=1)
    assert messages == {
        "d.jsd.bta": "unknown option; did you mean beta? jsd takes beta, side, "
        "rows, normalize, label, shape.",
        "d.jsd.beta": "must be a finite number, not 'x'.",
        "d.jsd.side": "must be a or b, not 'c'.",
        "d.jsd.rows": "must be a whole number or null, not 1.5.",
        "d.jsd.normalize": "must be true or false, not 1.",
        "d.jsd.label": "is missing. jsd needs text here.",
    }
    assert "d.jsd.beta" in wrong("jsd", label="x", beta=float("nan"))
    assert "d.jsd.beta" in wrong("jsd", label="x", beta=True)
    assert "takes no options" in wrong("plain", a=1)["d.plain.a"]


@pytest.mark.usefixtures("package")
def test_an_unknown_name_comes_with_the_nearest_and_all_known() -> None:
    assert wrong("jds")["d"].startswith("no divergence is called 'jds'; did you mean jsd? Known: jsd, plain;")


@pytest.mark.usefixtures("package")
def test_a_name_from_outside_that_leads_nowhere_is_refused() -> None:
    assert wrong("my.package:loss")["d"].startswith("my.package cannot be imported: No module named 'my'.")
    for name in ("my.package:", ":loss", "my package:loss", "a:b:c"):
        assert not plugins.is_outside(name)
        assert wrong(name)


@pytest.mark.usefixtures("package")
def test_the_schema_carries_options_defaults_and_what_is_required() -> None:
    names, outside, mapping = plugins.schema("divergences")["anyOf"]
    assert names == {"enum": ["jsd", "plain"]}
    assert "pattern" in outside
    jsd = mapping["properties"]["jsd"]
    beta = jsd["properties"]["beta"]
    assert beta["default"] == 0.5
    assert beta["anyOf"][0] == {"type": "number"}
    assert set(beta["anyOf"][1]["properties"]) == {"linear", "cosine"}
    assert jsd["properties"]["rows"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert jsd["required"] == ["label"]
    assert jsd["additionalProperties"] is False


@pytest.mark.parametrize("family", plugins.FAMILIES)
def test_every_plugin_of_this_package_states_its_purpose_and_annotates_its_options(family: str) -> None:
    for name, signature in plugins.plugins(family).items():
        assert signature.purpose, name
        module = importlib.import_module(f"potstill.{family}.{name}")
        function = next(getattr(module, f) for f in plugins.FAMILIES[family].functions if hasattr(module, f))
        arguments = inspect.signature(function).parameters.values()
        for argument in (argument for argument in arguments if argument.kind is argument.KEYWORD_ONLY):
            assert argument.annotation is not argument.empty, f"{name}.{argument.name}"


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
    wrong_options = problems({"distill": {"divergence": choice}})
    assert "did you mean beta?" in wrong_options["stages.distill.divergence.plugin_that_fails:loss.bta"]
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
    (tmp_path / "plugin_for_a_test.py").write_text(OUTSIDE.replace("return beta", "return 2 * beta"))
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
        plugins.load("divergences", "plugin_for_a_test:loss", {"bta": 1, "rows": 1.5})
    paths = [problem.path for problem in caught.value.problems]
    assert paths == [f"divergences.plugin_for_a_test:loss.{key}" for key in ("bta", "rows")]


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
