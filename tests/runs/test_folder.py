"""The folder that a command is given is the folder that it writes."""

from __future__ import annotations

import shutil

import pytest

from builders import places
from builders.cli import potstill

STAGES = "[{distill: {steps: 1}}]"


def contents(folder):
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def one(tmp_path):
    places.write(tmp_path, stages=STAGES)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    return tmp_path


@pytest.mark.parametrize("command", ["run", "report"])
def test_a_copied_run_folder_leaves_the_original_alone(one, command):
    shutil.copytree(one / "runs/r", one / "runs/copy", symlinks=True)
    before = contents(one / "runs/r")
    done = potstill(command, "runs/copy", cwd=one)
    assert done.returncode == 0, done.stderr
    assert contents(one / "runs/r") == before
    assert places.summary(one, "copy")["name"] == "copy"


def test_runs_that_share_a_student_have_a_card_each_and_the_store_has_none(one):
    card = one / "runs/r/student/README.md"
    before = card.read_bytes()
    assert b"# r: teacher cut to 1 of 2 layers" in before
    assert b"- distill, divergence `forward_kl`, strategy `offline`: 1 step, " in before
    done = potstill("run", "runs/r", "name=other", cwd=one)
    assert done.returncode == 0, done.stderr
    other = (one / "runs/other/student/README.md").read_bytes()
    assert other == before.replace(b"# r: ", b"# other: ").replace(b"recipe `r`", b"recipe `other`").replace(
        places.summary(one, "r")["recipe_hash"].encode(), places.summary(one, "other")["recipe_hash"].encode()
    )
    assert card.read_bytes() == before
    assert not list((one / "runs/.store").glob("*/student/README.md"))
    assert (one / "runs/other/student/model.safetensors").samefile(one / "runs/r/student/model.safetensors")


def test_a_renamed_run_folder_goes_on_in_its_place(one):
    (one / "runs/r").rename(one / "runs/renamed")
    done = potstill("run", "runs/renamed", cwd=one)
    assert done.returncode == 0, done.stderr
    assert "unchanged" in done.stderr
    assert sorted(folder.name for folder in (one / "runs").iterdir()) == [".store", "renamed"]


def test_a_run_folder_behind_a_link_is_written_where_it_is(one):
    (one / "elsewhere").mkdir()
    (one / "elsewhere/here").symlink_to(one / "runs/r")
    done = potstill("run", "elsewhere/here", cwd=one)
    assert done.returncode == 0, done.stderr
    assert [folder.name for folder in (one / "elsewhere").iterdir()] == ["here"]


def test_a_new_name_starts_a_new_run_beside_the_folder(one):
    before = contents(one / "runs/r")
    done = potstill("run", "runs/r", "name=other", cwd=one)
    assert done.returncode == 0, done.stderr
    assert contents(one / "runs/r") == before
    assert places.summary(one, "other")["name"] == "other"


def test_a_folder_whose_name_no_run_may_have_is_refused_by_that_name(one):
    (one / "runs/r").rename(one / "runs/my run!")
    done = potstill("run", "runs/my run!", cwd=one)
    assert done.returncode == 2
    assert "my run!" in done.stderr


def test_a_student_that_teaches_another_run_is_called_as_its_folder_and_stays_where_it_is(one):
    """The run that made it may be run again meanwhile: nothing changed, so nothing moves."""
    before = (one / "runs/r/student").resolve()
    assert potstill("run", "runs/r", cwd=one).returncode == 0
    assert (one / "runs/r/student").resolve() == before
    taught = ("teacher={model: runs/r/student}", "student={model: runs/r/student}", "name=taught")
    done = potstill("run", "runs/r", *taught, "--until", "distill", cwd=one)
    assert done.returncode == 0, done.stderr
    assert places.summary(one, "taught")["teacher"]["name"] == "student"
    assert "- Teacher: `student`." in (one / "runs/taught/student/README.md").read_text()
