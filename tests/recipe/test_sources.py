"""The source of a plug-in: what it imports decides on its results as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from potstill.recipe import plugins
from potstill.recipe.sources import source_hash


def write(place: Path, **files: str) -> Path:
    for name, text in files.items():
        file = place / (name.replace("__", "/").replace("/init", "/__init__") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return place


@pytest.mark.parametrize(
    "imports",
    [
        "from mine import helper",
        "from mine.helper import x",
        "import mine.helper",
        "from . import helper",
        "from .helper import x",
        "def late():\n    from mine.between import y",
    ],
)
def test_a_helper_of_the_same_package_is_part_of_a_plugins_source(tmp_path: Path, imports: str) -> None:
    place = write(
        tmp_path,
        mine__init="",
        mine__helper="x = 1",
        mine__between="from mine.helper import x as y",
        mine__p=imports,
    )
    before = source_hash("mine.p", place / "mine/p.py")
    (place / "mine/helper.py").write_text("x = 2")
    assert source_hash("mine.p", place / "mine/p.py") != before


def test_a_module_beside_a_loose_plugin_is_part_of_its_source_and_nothing_else_is(tmp_path: Path) -> None:
    place = write(tmp_path, p="import helper, json", helper="import other", other="x = 1", unrelated="x = 1")
    before = source_hash("p", place / "p.py")
    (place / "unrelated.py").write_text("x = 2")
    assert source_hash("p", place / "p.py") == before
    (place / "other.py").write_text("x = 2")
    assert source_hash("p", place / "p.py") != before


def test_an_installed_module_knows_nothing_of_those_installed_beside_it(tmp_path: Path) -> None:
    place = write(tmp_path / "site-packages", p="import torchlike", torchlike="x = 1")
    before = source_hash("p", place / "p.py")
    (place / "torchlike.py").write_text("x = 2")
    assert source_hash("p", place / "p.py") == before


def test_modules_that_import_each_other_are_read_once(tmp_path: Path) -> None:
    place = write(tmp_path, p="import q", q="import p")
    assert source_hash("p", place / "p.py") == source_hash("p", place / "p.py")


@pytest.mark.parametrize(
    ("family", "name", "helper"),
    [
        ("filters", "secrets", "filters/_patterns.py"),
        ("filters", "loops", "data/habits.py"),
        ("verifiers", "numeric", "data/row.py"),
        ("evaluate", "labels", "evaluate/_task.py"),
    ],
)
def test_helpers_of_what_judges_answers_are_part_of_its_key(
    monkeypatch: pytest.MonkeyPatch, family: str, name: str, helper: str
) -> None:
    """A changed pattern judges anew; nothing is taken from what another one said."""
    before = plugins.identity(family, name, {})
    changed = (plugins.PACKAGE / helper).resolve()
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda file: read(file) + b"# 2" * (file.resolve() == changed))
    assert plugins.identity(family, name, {}) != before
    assert plugins.identity("divergences", "forward_kl", {}) == ["forward_kl", {}]  # versioned by its stages
