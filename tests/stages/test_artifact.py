"""How an artifact of a stage is built."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders.jobs import Memory, context
from builders.tiny import tiny_model
from potstill.console import Console
from potstill.errors import ArtifactError
from potstill.stages import _artifact
from potstill.store import artifacts
from potstill.store.artifacts import key_of, read


def test_time_before_an_interruption_is_counted(tmp_path, monkeypatch):
    """5 seconds before the interruption and 2 behind it are 7, also for who reads the artifact later."""
    now = iter([0.0, 5.0, 100.0, 102.0])
    monkeypatch.setattr(_artifact.time, "monotonic", lambda: next(now))
    where = context(tmp_path, Memory(tiny_model()))

    def stopped(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _artifact.produce(where, "train", "distill", {"a": 1}, stopped)
    made = _artifact.produce(where, "train", "distill", {"a": 1}, lambda folder: {"steps": 3})
    assert made.facts["seconds"] == read(made.path).facts["seconds"] == 7.0
    assert made.facts["steps"] == 3
    assert [file.name for file in made.path.iterdir()] == ["manifest.json"]


def build(folder):
    (folder / "student").mkdir()
    (folder / "student/weights").write_text("weights")
    return {"steps": 3}


FILES = ("manifest.json", "student/weights")


@pytest.mark.parametrize("removed", [(0,), (1,), (0, 1), ()])
def test_a_damaged_artifact_is_named_moved_aside_and_made_again(tmp_path, capsys, removed):
    """Any of its files is gone, or a byte of the weights is another."""
    where = replace(context(tmp_path, Memory(tiny_model())), console=Console())
    made = _artifact.produce(where, "train", "distill", {}, build)
    for number in removed:
        (made.path / FILES[number]).unlink()
    if not removed:
        (made.path / FILES[1]).write_text("Weights")
    with pytest.raises(ArtifactError, match=FILES[removed[0] if removed else 1]):
        where.store.find("train", made.key)
    again = _artifact.produce(where, "train", "distill", {}, build)
    assert (again.path, again.reused) == (made.path, False)
    assert (again.path / FILES[1]).read_text() == "weights"
    assert f"{FILES[removed[0] if removed else 1]} is " in capsys.readouterr().err
    assert len(list(made.path.parent.glob(".train-*.aside-1"))) == 1
    assert _artifact.produce(where, "train", "distill", {}, build).reused


def killed_in_the_move(where, monkeypatch):
    """Build an artifact in a process that ends before the last step; the folder in which it is."""

    def killed(source, place):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "move_into_place", killed)
        with pytest.raises(KeyboardInterrupt):
            _artifact.produce(where, "train", "distill", {}, build)
    return where.store.work("train", key_of("train", {}))


def test_a_build_that_was_killed_as_it_moved_into_its_place_is_whole(tmp_path, monkeypatch):
    """What it went on with is away already, so nothing but the move is left to do."""
    where = context(tmp_path, Memory(tiny_model()))
    killed_in_the_move(where, monkeypatch)
    made = _artifact.produce(where, "train", "distill", {}, lambda folder: pytest.fail("it is built again"))
    assert made.facts["steps"] == 3
    assert (made.path / FILES[1]).read_text() == "weights"


def test_a_build_that_was_killed_as_it_moved_and_is_damaged_is_made_again(tmp_path, monkeypatch):
    where = context(tmp_path, Memory(tiny_model()))
    (killed_in_the_move(where, monkeypatch) / FILES[1]).write_text("Weights")
    made = _artifact.produce(where, "train", "distill", {}, build)
    assert (made.path / FILES[1]).read_text() == "weights"


@pytest.mark.parametrize("text", ["", "x", "-5", "nan?"])
def test_a_time_that_cannot_be_read_ends_no_build(tmp_path, text):
    where = context(tmp_path, Memory(tiny_model()))
    (where.store.work("train", key_of("train", {})) / ".seconds").write_text(text)
    assert 0 <= _artifact.produce(where, "train", "distill", {}, build).facts["seconds"] < 5


def test_what_a_dead_build_left_is_no_part_of_the_artifact(tmp_path):
    """It was killed while it wrote its output: that folder is not the one of the build that ends well."""
    where = context(tmp_path, Memory(tiny_model()))
    work = where.store.work("train", key_of("train", {}))
    (work / "student").mkdir()
    (work / "student/model-00001-of-00002.safetensors").write_text("half")
    (work / "manifest.json").write_text("{")
    made = _artifact.produce(where, "train", "distill", {}, build)
    assert made.manifest["files"].keys() == {"student/weights"}
