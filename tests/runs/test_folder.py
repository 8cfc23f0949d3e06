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
