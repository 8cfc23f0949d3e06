"""Teacher, student and data of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builders.recipes import problems, read
from potstill.recipe import plugins
from potstill.recipe.recipe import dump_yaml, parse_recipe
from potstill.recipe.yaml import load_yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("student", "path"),
    [
        ({}, "student"),
        ({"model": "m", "from_teacher": {"keep_layers": 2}}, "student"),
        ({"from_teacher": {}}, "student.from_teacher.keep_layers"),
        ({"from_teacher": {"keep_layers": 3, "by": [0, 1]}}, "student.from_teacher.keep_layers"),
        ({"from_teacher": {"by": [1, 0]}}, "student.from_teacher.by"),
        ({"from_teacher": {"by": [1, 1]}}, "student.from_teacher.by"),
        ({"from_teacher": {"by": [-1, 1]}}, "student.from_teacher.by.0"),
        ({"from_teacher": {"by": []}}, "student.from_teacher.by"),
        ({"from_teacher": {"keep_layers": 0}}, "student.from_teacher.keep_layers"),
        ({"from_teacher": {"keep_layers": 2}, "revision": "main"}, "student.revision"),
    ],
)
def test_a_student_is_one_model_or_one_cut(student: dict[str, Any], path: str) -> None:
    assert list(problems(student=student)) == [path]


def test_a_cut_by_a_list_needs_no_count_of_layers() -> None:
    student = read(student={"from_teacher": {"by": [0, 3, 5]}}).student
    assert student.plugin == ("depth", {"keep_layers": None, "by": (0, 3, 5)})


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:-1], COMMIT.upper()])
def test_foreign_code_runs_only_from_a_pinned_commit(revision: str | None) -> None:
    teacher = {"model": "org/m", "trust_remote_code": True, "revision": revision}
    assert "a full commit" in problems(teacher=teacher)["teacher.trust_remote_code"]
    assert list(problems(student=teacher)) == ["student.trust_remote_code"]


@pytest.mark.parametrize("model", [{"model": "org/m", "revision": COMMIT}, {"model": "./m"}])
def test_foreign_code_from_a_pinned_commit_or_a_local_folder_is_accepted(model: dict[str, str]) -> None:
    assert read(teacher=model | {"trust_remote_code": True}).teacher.trust_remote_code is True


def test_a_model_inside_a_package_names_its_file() -> None:
    assert read(teacher={"model": "package:some_pack/deep/m.gguf"}).teacher.model.endswith("m.gguf")
    for model in ("package:some_pack", "package:/m.gguf", "package:some_pack/m.bin"):
        assert list(problems(teacher={"model": model})) == ["teacher.model"]


@pytest.mark.parametrize("written", ["json:load", {"json:load": None}, {"json:load": {}}])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_teacher_or_student_from_outside_is_named_by_its_function(role: str, written: Any) -> None:
    assert getattr(read(**{role: written}), role).plugin == ("json:load", {})


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_wrong_option_of_a_model_is_reported_without_the_kind_of_input(role: str) -> None:
    assert list(problems(**{role: {"model": "m", "dtyp": "auto"}})) == [f"{role}.dtyp"]


def test_heldout_rows_are_named_or_split_off_but_not_both() -> None:
    data = {"train": "t", "heldout": "h", "heldout_fraction": 0.1}
    assert list(problems(data=data)) == ["data.heldout_fraction"]
    for fraction in (0, 1):
        assert list(problems(data={"train": "t", "heldout_fraction": fraction})) == ["data.heldout_fraction"]


def test_one_file_and_a_list_of_one_are_the_same_data() -> None:
    assert read(data={"train": "a.jsonl"}) == read(data={"train": ["a.jsonl"]})


def test_a_teacher_is_known_by_the_options_that_its_file_requires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding a kind of teacher touches no list: `teacher: {cache: …}` names the file that requires `cache`."""
    for family in set(plugins.FAMILIES) - {"teachers"}:
        (tmp_path / family).symlink_to(plugins.PACKAGE / family)
    local = plugins.find("teachers", "local").file.read_text(encoding="utf-8")
    (tmp_path / "teachers").mkdir()
    (tmp_path / "teachers/local.py").write_text(local, encoding="utf-8")
    (tmp_path / "teachers/cached.py").write_text(
        "def build(context, *, cache: str, strict: bool = True): ...\n"
    )
    monkeypatch.setattr(plugins, "PACKAGE", tmp_path)
    recipe = read(teacher={"cache": "signals/"})
    assert recipe.teacher.plugin == ("cached", {"cache": "signals/"})
    assert parse_recipe(load_yaml(dump_yaml(recipe), "r.yaml")) == recipe
    assert read(teacher={"model": "org/teacher"}).teacher.plugin[0] == "local"
    assert list(problems(teacher={"cache": "signals/", "strickt": True})) == ["teacher.cached.strickt"]
