"""The terms of a teacher that a recipe states are the teacher's, however it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import captures, places
from builders.tiny import save_tiny
from potstill.store.artifacts import Artifact
from potstill.store.disk import write_sealed
from potstill.teachers.cached import ABOUT, read_about


@pytest.mark.parametrize(
    ("teacher", "terms"),
    [
        ("{model: teacher, terms: research}", "research"),
        ("{layered: teacher, terms: research}", "research"),
        ("{scores: 'http://localhost:1', model: teacher, terms: research}", "research"),
        ("{endpoint: 'http://localhost:1', model: big, terms: research}", "research"),
        (
            "{ensemble: [{model: teacher, terms: research}, {model: other}]}",
            "teacher: research; other: not stated",
        ),
        ("{ensemble: [{model: teacher}, {model: other}]}", ""),
    ],
)
def test_a_teacher_says_the_terms_that_its_recipe_states(tmp_path: Path, teacher: str, terms: str) -> None:
    save_tiny(tmp_path / "other", seed=1)
    place = places.write(tmp_path, teacher=teacher, student="{model: other}", stages="[finetune]")
    assert places.read(place).teacher.terms == terms


@pytest.mark.parametrize(
    "teacher", ["{layered: teacher}", "{scores: 'http://localhost:1', model: teacher}", "{model: teacher}"]
)
def test_a_teacher_says_the_licence_of_its_files(tmp_path: Path, teacher: str) -> None:
    place = places.write(tmp_path)
    (place / "teacher/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    places.recipe(place, teacher=teacher, student="{model: teacher}", stages="[finetune]")
    assert places.read(place).teacher.licence == "apache-2.0"


def test_a_capture_takes_along_what_is_stated_of_its_teacher(tmp_path: Path) -> None:
    source = captures.teacher()
    source.licence, source.terms = "mit", "research"
    read = captures.reading(captures.captured(tmp_path, captures.rows(4), source), source)
    assert (read.licence, read.terms) == ("mit", "research")
    about = read_about(read.folder)
    del about["terms"]
    write_sealed(read.folder / ABOUT, about)  # as earlier versions wrote it
    assert captures.reading(Artifact(read.folder, {}), source).terms == ""
