"""Plug-ins read from source."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.recipe import plugins

SOURCE = '''"""Jensen-Shannon divergence, weighted."""

raise RuntimeError("nobody may import this")

from typing import Literal


def value(student_lp, teacher_lp, *, beta: float = 0.5, side: Literal["a", "b"] = "a",
          rows: int | None = None, normalize: bool = False, label: str, shape: Odd = ODD):
    """Text of the function."""


def partial(student_lp, *, other): ...
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "divergences"
    folder.mkdir()
    (folder / "jsd.py").write_text(SOURCE)
    (folder / "plain.py").write_text("def value(student_lp, teacher_lp): ...\n")
    (folder / "tools.py").write_text("def help_out(): ...\n")
    (folder / "__init__.py").write_text("def value(): ...\n")
    return tmp_path


def told(root: Path, name: str, **options: object) -> dict[str, str]:
    found = plugins.check_options("divergences", name, options, "d", root)
    return {problem.path: f"{problem.message} {problem.fix}".strip() for problem in found}


def test_a_file_is_a_plugin_by_its_public_function_and_is_never_imported(root: Path) -> None:
    found = plugins.plugins("divergences", root)
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


def test_a_family_without_a_folder_has_no_plugins(tmp_path: Path) -> None:
    assert plugins.plugins("divergences", tmp_path) == {}


def test_options_that_fit_are_silent(root: Path) -> None:
    assert told(root, "jsd", label="x") == {}
    assert told(root, "jsd", label="x", beta=1, side="b", rows=3, normalize=True, shape=[1]) == {}
    assert told(root, "jsd", label="x", rows=None) == {}
    assert told(root, "plain") == {}


def test_options_that_do_not_fit_are_all_told(root: Path) -> None:
    found = told(root, "jsd", bta=1, beta="x", side="c", rows=1.5, normalize=1)
    assert found == {
        "d.jsd.bta": "unknown option; did you mean beta? jsd takes beta, side, "
        "rows, normalize, label, shape.",
        "d.jsd.beta": "must be a finite number, not 'x'.",
        "d.jsd.side": "must be a or b, not 'c'.",
        "d.jsd.rows": "must be a whole number or null, not 1.5.",
        "d.jsd.normalize": "must be true or false, not 1.",
        "d.jsd.label": "is missing. jsd needs text here.",
    }
    assert "d.jsd.beta" in told(root, "jsd", label="x", beta=float("nan"))
    assert "d.jsd.beta" in told(root, "jsd", label="x", beta=True)
    assert "takes no options" in told(root, "plain", a=1)["d.plain.a"]


def test_an_unknown_name_comes_with_the_nearest_and_all_known(root: Path) -> None:
    assert told(root, "jds")["d"].startswith(
        "no divergence is called 'jds'; did you mean jsd? Known: jsd, plain;"
    )


def test_a_plugin_from_outside_is_left_to_its_loading(root: Path) -> None:
    assert told(root, "my.package:loss", anything=1) == {}
    for name in ("my.package:", ":loss", "my package:loss", "a:b:c"):
        assert not plugins.is_outside(name)
        assert told(root, name)


def test_the_schema_carries_options_defaults_and_what_is_required(root: Path) -> None:
    names, outside, mapping = plugins.schema("divergences", root)["anyOf"]
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


@pytest.mark.parametrize("family", ["divergences", "strategies"])
def test_every_option_of_our_own_plugins_has_an_annotation(family: str) -> None:
    for signature in plugins.plugins(family).values():
        assert signature.purpose, signature.name
        for option in signature.options:
            assert option.annotation, f"{signature.name}.{option.name}"
