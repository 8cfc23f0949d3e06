"""Plug-ins read from source."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.recipe import plugins

SOURCE = '''"""Jensen-Shannon divergence, weighted."""

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


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "divergences"
    folder.mkdir()
    (folder / "jsd.py").write_text(SOURCE)
    (folder / "plain.py").write_text("def value(student_lp, teacher_lp): ...\n")
    (folder / "tools.py").write_text("def help_out(): ...\n")
    (folder / "__init__.py").write_text("def value(): ...\n")
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path)


def wrong(name: str, **options: object) -> dict[str, str]:
    problems = plugins.check_options("divergences", name, options, "d")
    return {problem.path: f"{problem.message} {problem.fix}".strip() for problem in problems}


def test_a_file_is_a_plugin_by_its_public_function_and_is_never_imported() -> None:
    found = plugins.plugins("divergences")
    assert list(found) == ["jsd", "plain"]
    assert found["jsd"].purpose == "Jensen-Shannon divergence, weighted."
    assert [(o.name, o.required, o.default) for o in found["jsd"].options] == [
        ("beta", False, 0.5),
        ("side", False, "a"),
        ("rows", False, None),
        ("normalize", False, False),
        ("label", True, None),
        ("shape", False, None),
    ]
    assert found["plain"].options == ()


def test_a_signature_carries_the_uppercase_literals_of_its_file() -> None:
    signature = plugins.plugins("divergences")["jsd"]
    assert signature.constants == {"SUPPORTS": {"dense"}, "LEARNING_RATE": (5e-6, "why")}
    assert plugins.plugins("divergences")["plain"].constants == {}


def test_a_divergence_may_be_given_by_its_value_with_the_partial(tmp_path: Path) -> None:
    (tmp_path / "divergences" / "both.py").write_text(
        "def value_and_partial(s, t, *, beta: float = 1): ...\n"
    )
    assert [option.name for option in plugins.plugins("divergences")["both"].options] == ["beta"]


def test_a_family_without_a_folder_has_no_plugins() -> None:
    assert plugins.plugins("teachers") == {}


def test_options_that_fit_are_silent() -> None:
    assert wrong("jsd", label="x") == {}
    assert wrong("jsd", label="x", beta=1, side="b", rows=3, normalize=True, shape=[1]) == {}
    assert wrong("jsd", label="x", rows=None) == {}
    assert wrong("plain") == {}


def test_options_that_do_not_fit_are_all_reported() -> None:
    found = wrong("jsd", bta=1, beta="x", side="c", rows=1.5, normalize=1)
    assert found == {
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


def test_an_unknown_name_comes_with_the_nearest_and_all_known() -> None:
    assert wrong("jds")["d"].startswith("no divergence is called 'jds'; did you mean jsd? Known: jsd, plain;")


def test_a_name_from_outside_that_leads_nowhere_is_refused() -> None:
    assert wrong("my.package:loss")["d"].startswith("my.package cannot be imported: No module named 'my'.")
    for name in ("my.package:", ":loss", "my package:loss", "a:b:c"):
        assert not plugins.is_outside(name)
        assert wrong(name)


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


@pytest.mark.parametrize("family", plugins.FUNCTIONS)
def test_every_option_of_our_own_plugins_has_an_annotation(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for signature in plugins.plugins(family).values():
        assert signature.purpose, signature.name
        for option in signature.options:
            assert option.annotation, f"{signature.name}.{option.name}"
