"""What a summary says of the models, the machine and how to repeat a run."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from builders.tiny import save_tiny
from potstill.report.machine import machine

STAGES = "[{distill: {steps: 1}}, {evaluate: {samples: 3, max_new_tokens: 3, resamples: 100}}]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("finished")
    for name, seed in (("teacher", 0), ("small", 3)):
        save_tiny(place / name, seed=seed)
    (place / "teacher/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    places.write(place, places.answered(40), stages=STAGES)
    for name, changes in {"cut": [], "own": ["student={model: small}"]}.items():
        done = potstill("run", "r.yaml", f"name={name}", *changes, cwd=place)
        assert done.returncode == 0, done.stderr
    return place


@pytest.mark.parametrize(("run", "name", "licence"), [
    ("cut", "teacher cut to 1 of 2 layers", "apache-2.0"),
    ("own", "small", None),
])  # fmt: skip
def test_the_student_has_a_name_and_a_licence(finished, run, name, licence):
    summary = places.summary(finished, run)
    assert (summary["student"]["name"], summary["student"]["licence"]) == (name, licence)
    assert summary["teacher"]["licence"] == "apache-2.0"
    assert licence is not None or summary["student"]["licence_reason"] == "not stated"
    assert (
        f"<title>{run}: {name} · potstill report</title>"
        in (finished / f"runs/{run}/report.html").read_text()
    )


def test_the_machine_is_named_without_its_name_and_user():
    text = machine()
    assert "processors" in text
    assert "thread" in text
    assert platform.node() not in text or len(platform.node()) < 4
    assert getpass.getuser() not in text


def test_the_number_formats_are_those_of_the_run(finished):
    formats = places.summary(finished, "cut")["made"]["precision"]
    assert formats.keys() == {"teacher and measurements", "distill"}
    assert set(formats.values()) <= {"float32", "bfloat16", "float16"}


def test_the_recipe_on_the_page_repeats_the_run_and_names_no_folder_of_this_machine(finished, tmp_path):
    """A run that went on by its folder knows that folder by its whole path."""
    assert potstill("run", "runs/cut", cwd=finished).returncode == 0
    page = (finished / "runs/cut/report.html").read_text()
    assert str(finished) not in page
    assert "potstill run recipe.yaml" in page
    recipe = json.loads((finished / "runs/cut/record.json").read_text())["content"]["recipe"]
    assert recipe.splitlines()[0] in page
    save_tiny(tmp_path / "teacher")
    write_lines(tmp_path / "rows.jsonl", *places.answered(40))
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert potstill("run", "recipe.yaml", cwd=tmp_path).returncode == 0
    again, before = places.summary(tmp_path, "cut"), places.summary(finished, "cut")
    for key in ("recipe_hash", "data", "before", "after"):
        assert again[key] == before[key]
