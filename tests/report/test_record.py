"""A page is made from what its run recorded: models, rows and store may be gone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from builders import made_up, places
from builders.chats import write_lines
from builders.cli import potstill
from potstill.data import split
from potstill.errors import ArtifactError
from potstill.evaluate import by_prompt, stats
from potstill.models import loading
from potstill.report import page, record
from potstill.report.curves import Curve
from potstill.report.record import Record
from potstill.runs import setup
from potstill.store import artifacts, disk
from potstill.store.folder import RunDir
from potstill.types import Figure

STAGES = "[{generate: {filters: null, max_new_tokens: 3}}, {distill: {steps: 2}}, {evaluate: {samples: 4, resamples: 100}}]"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    place = places.write(tmp_path_factory.mktemp("finished"), places.answered(60), stages=STAGES)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "p", symlinks=True)
    return tmp_path / "p"


def left(place: Path) -> dict[str, bytes]:
    return {name: (place / "runs/r" / name).read_bytes() for name in ("report.html", "summary.json")}


@pytest.mark.parametrize("gone", [
    ["teacher"], ["rows.jsonl"], ["r.yaml"], ["runs/.store"], ["teacher", "rows.jsonl", "r.yaml", "runs/.store"],
])  # fmt: skip
def test_a_report_is_made_whatever_of_the_past_is_gone(place, gone):
    before = left(place)
    for name in ["runs/r/report.html", "runs/r/summary.json", *gone]:
        shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
    done = potstill("report", "runs/r", cwd=place)
    assert done.returncode == 0, done.stderr
    assert left(place) == before
    assert "Held-out KL" in done.stdout


def test_a_report_hashes_no_file_reads_no_model_and_counts_nothing(place, monkeypatch):
    """What would take minutes on a real model is never begun."""

    def never(*args, **options):
        raise AssertionError(args)

    for module, name in (
        (disk, "file_hash"), (disk, "hash_once"), (artifacts, "hash_once"), (artifacts, "read"), (loading, "fingerprint"),
        (loading, "load_config"), (split, "overlap"), (setup, "set_up"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, never)
    before = left(place)
    assert potstill("report", "runs/r", cwd=place).returncode == 0
    assert left(place) == before


def test_the_report_of_a_copied_folder_alone_is_made(place, tmp_path):
    (tmp_path / "mail").mkdir()
    for name in ("recipe.yaml", "record.json"):
        shutil.copy(place / "runs/r" / name, tmp_path / "mail" / name)
    assert potstill("report", "mail", cwd=tmp_path).returncode == 0
    page = (tmp_path / "mail/report.html").read_text()
    assert "<h1>mail: teacher cut to 1 of 2 layers</h1>" in page
    assert page.replace("mail: ", "r: ").encode() == left(place)["report.html"]


def test_a_run_with_another_recipe_that_was_stopped_has_no_report(place):
    """The page of the recipe before would pass for one of this recipe."""
    write_lines(place / "rows.jsonl", {"prompt": "w1"})
    assert potstill("run", "r.yaml", "distill.steps=3", cwd=place).returncode == 2
    assert potstill("report", "runs/r", cwd=place).returncode == 0  # it stopped before the recipe was taken
    shutil.copy(place / "r.yaml", place / "runs/r/recipe.yaml")
    done = potstill("report", "runs/r", cwd=place)
    assert done.returncode == 2
    assert "is not finished with the recipe in its folder" in done.stderr


@pytest.mark.parametrize("text", [
    "", "mine", "{}", '{"version": 0}', "[]", '{"version": 1}',
    '{"version": 1, "summary": [], "recipe": "", "complete": true, "content": null}',
    '{"version": 1, "summary": {}, "recipe": "", "complete": true, "content": {"curves": [{"stage": 1}]}}',
])  # fmt: skip
def test_a_record_that_is_none_is_named_and_made_again(place, text):
    before = left(place)
    (place / "runs/r/record.json").write_text(text)
    done = potstill("report", "runs/r", cwd=place)
    assert done.returncode == 2
    assert "record.json" in done.stderr
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    assert json.loads(left(place)["summary.json"])["after"] == json.loads(before["summary.json"])["after"]
    assert potstill("report", "runs/r", cwd=place).returncode == 0


def test_a_run_records_its_students_figures_prompt_by_prompt(place):
    """Every figure that has an interval can be compared with another run's later."""
    made = record.read(RunDir(place / "runs/r"))
    blocks = {**made.summary["after"], **made.summary["behaviour"]["after"]}
    measured = {k: b for k, b in blocks.items() if isinstance(b, dict) and "low" in b}
    assert set(made.prompts) == set(measured)
    for key, entry in made.prompts.items():
        mean = stats.mean([by_prompt.restored(Figure(key, **measured[key]), entry)], resamples=100)
        assert mean.value == pytest.approx(measured[key]["value"])
        assert (mean.low, mean.high) == pytest.approx((measured[key]["low"], measured[key]["high"]))


def test_a_record_without_prompts_is_read(tmp_path):
    """Earlier versions wrote none."""
    content = made_up.content()
    record.write(RunDir(tmp_path), Record(content.summary, "", True, content))
    file = tmp_path / "record.json"
    value = {k: v for k, v in disk.read_sealed(file).items() if k != "prompts"}
    disk.write_sealed(file, value)
    assert record.read(RunDir(tmp_path)).prompts == {}


def test_everything_on_the_page_is_recorded(tmp_path):
    content = replace(made_up.content(), recipe="version: 1\n")
    record.write(RunDir(tmp_path), Record(content.summary, content.recipe, True, content))
    again = record.read(RunDir(tmp_path))
    assert page.render(again.content) == page.render(content)


def test_a_loss_that_was_not_finite_is_recorded(tmp_path):
    curve = Curve("distill", "training", ((1.0, 2.0), (2.0, float("nan")), (3.0, float("inf")), (4.0, 1.0)))
    content = replace(made_up.content(), curves=[curve])
    record.write(RunDir(tmp_path), Record(content.summary, "", True, content))
    points = record.read(RunDir(tmp_path)).content.curves[0].points
    assert [value for _, value in points if value == value] == [2.0, 1.0]


def test_a_changed_byte_of_a_record_is_found(tmp_path):
    content = made_up.content()
    record.write(RunDir(tmp_path), Record(content.summary, "", True, content))
    file = tmp_path / "record.json"
    file.write_text(file.read_text().replace("0.45", "0.44", 1))
    with pytest.raises(ArtifactError, match=r"record\.json is not as it was written"):
        record.read(RunDir(tmp_path))
