"""A run folder: its owner, its state, its links."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from potstill.errors import ArtifactError, MachineError
from potstill.store import disk
from potstill.store.folder import RunDir


def test_a_folder_has_one_owner_at_a_time_and_names_it(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert folder.owner() is None
    with folder.owned():
        assert folder.owner() == os.getpid()
        with pytest.raises(ArtifactError, match=f"belongs to process {os.getpid()}"), folder.owned():
            pass
    assert folder.owner() is None


def test_a_lock_without_a_number_has_an_unnamed_owner(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("a") as handle:
        assert disk.lock(handle)
        assert RunDir(tmp_path).owner() == -1


def test_values_are_merged_into_the_state(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert folder.state() == {}
    folder.update({"status": "running", "stage": "generate"})
    folder.update({"stage": "distill"})
    assert folder.state() == {"status": "running", "stage": "distill"}


def test_a_state_that_is_no_json_is_refused_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ArtifactError, match="run.json is not readable"):
        RunDir(tmp_path).state()
    RunDir(tmp_path).update_at_end({"status": "failed"})  # hides no error of the run


@pytest.mark.parametrize("size", [5, 5000])
def test_the_last_state_is_written_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """No new file can be written: the old one is written over, whether it was longer or shorter."""
    folder = RunDir(tmp_path)
    folder.update({"status": "running", "training": {"metrics": "x" * size}})

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "write_text", full)
    error = {"message": "the disk is full.", "fix": "Free some.", "path": ""}
    folder.update_at_end({"status": "failed", "training": None, "error": error})
    assert folder.state() == {"status": "failed", "training": None, "error": error}


@pytest.mark.parametrize(
    "state",
    ["[]", "3", '{"base": null}', '{"base": 3}', '{"status": []}', '{"training": "x"}', '{"training": {"steps": "3"}}',
     '{"training": {"metrics": ["m"], "steps": 3}}', '{"error": "x"}', '{"error": {"message": "m"}}', "[" * 10_000],
)  # fmt: skip
def test_a_state_of_other_kinds_of_values_is_refused(tmp_path: Path, state: str) -> None:
    (tmp_path / "run.json").write_text(state)
    with pytest.raises(ArtifactError, match=r"run\.json is not readable"):
        RunDir(tmp_path).state()


def test_a_link_replaces_an_older_one_and_stays_when_the_project_moves(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "a" / ".store" / name).mkdir(parents=True)
        RunDir(tmp_path / "a/run").link("stages/distill", tmp_path / "a/.store" / name)
    (tmp_path / "a").rename(tmp_path / "b")
    assert (tmp_path / "b/run/stages/distill").resolve() == tmp_path / "b/.store/two"


def test_links_that_are_not_named_are_removed_and_folders_kept(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for name in ("distill", "finetune"):
        folder.link(f"stages/{name}", tmp_path)
    (tmp_path / "stages/copy").mkdir()
    folder.keep_links("stages", ["distill"])
    assert {path.name for path in (tmp_path / "stages").iterdir()} == {"distill", "copy"}


def test_a_folder_in_the_place_of_a_link_is_refused_at_the_link(tmp_path: Path) -> None:
    """Refused at the link itself too, without a stray link beside it."""
    (tmp_path / "student").mkdir()
    with pytest.raises(MachineError, match="student is a folder"):
        RunDir(tmp_path).link("student", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_link_holds_in_a_folder_that_is_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "disk/far/away").mkdir(parents=True)
    (tmp_path / "runs/.store/one").mkdir(parents=True)
    (tmp_path / "runs/r").symlink_to(tmp_path / "disk/far/away")
    RunDir(tmp_path / "runs/r").link("stages/distill", tmp_path / "runs/.store/one")
    assert (tmp_path / "runs/r/stages/distill").resolve() == tmp_path / "runs/.store/one"


def test_a_place_that_takes_no_links_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    with pytest.raises(MachineError, match="takes no links"):
        RunDir(tmp_path / "r").create()


def test_an_owner_clears_away_what_a_killed_process_left(tmp_path: Path) -> None:
    for name in (".run.json.7.tmp", ".student.7.tmp", ".write-test.7.tmp", ".0a1b.gone", "mine.tmp"):
        (tmp_path / name).write_text("")
    with RunDir(tmp_path).owned():
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.tmp"}


def test_a_file_in_the_place_of_the_stages_is_moved_aside(tmp_path: Path, caplog) -> None:
    (tmp_path / "stages").write_text("mine")
    RunDir(tmp_path).link("stages/distill", tmp_path)
    assert (tmp_path / "stages/distill").is_symlink()
    assert (tmp_path / ".stages.aside-1").read_text() == "mine"
    assert "stages stands where something else belongs" in caplog.text


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, "\x00"])
def test_a_state_that_is_no_object_is_refused_with_its_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ArtifactError, match="run.json is not readable"):
        RunDir(tmp_path).state()


def artifact(place: Path) -> Path:
    """A folder of the store with a model's files, and a card that another tool left there."""
    folder = place / "runs/.store/train-1/student"
    (folder / "more").mkdir(parents=True)
    for name in ("model.safetensors", "more/code.py", "README.md", "more/README.md"):
        (folder / name).write_text(f"the store's {name}")
    return folder


def test_an_export_is_the_runs_own_folder_of_whole_files_with_its_own_texts(tmp_path: Path) -> None:
    """A card that lies in the store's folder is not passed off as the run's, and stays as it is."""
    source, run = artifact(tmp_path), RunDir(tmp_path / "runs/r")
    run.path.mkdir()
    assert run.export("student", source, {"README.md": "ours"}) == run.path / "student"
    place = run.path / "student"
    assert (place / "README.md").read_text() == "ours"
    assert (source / "README.md").read_text() == "the store's README.md"
    assert (place / "more/README.md").read_text() == "the store's more/README.md"
    assert (place / "model.safetensors").samefile(source / "model.safetensors")
    assert not any(path.is_symlink() for path in place.rglob("*"))
    disk.discard(source)
    assert (place / "model.safetensors").read_text() == "the store's model.safetensors"


def test_an_edit_of_an_exports_small_files_leaves_the_artifact_as_it_is(tmp_path: Path) -> None:
    source, run = artifact(tmp_path), RunDir(tmp_path / "runs/r")
    run.path.mkdir()
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for path in run.export("student", source, {"README.md": "ours"}).rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            path.write_text("edited in place")
    assert {path: path.read_bytes() for path in before} == before


def test_an_export_replaces_the_one_before_and_what_a_killed_process_left(tmp_path: Path) -> None:
    source, run = artifact(tmp_path), RunDir(tmp_path / "runs/r")
    (run.path / ".student-half").mkdir(parents=True)
    run.link("student", source)  # as earlier versions left it
    for text in ("one", "two"):
        run.export("student", source, {"README.md": text})
    assert (run.path / "student/README.md").read_text() == "two"
    assert len(list(run.path.iterdir())) == 3
    assert (run.path / "student").resolve().name == "student"
    assert (run.path / ".student").samefile(source)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved/r/student/README.md").read_text() == "two"


def test_an_export_that_is_the_same_stays_where_it_is(tmp_path: Path) -> None:
    """Another run may be reading it: it is found by where the link leads, and may be opened again."""
    source, run = artifact(tmp_path), RunDir(tmp_path / "runs/r")
    run.path.mkdir()
    place = run.export("student", source, {"README.md": "ours"})
    before = place.resolve()
    run.export("student", source, {"README.md": "ours"})
    assert place.resolve() == before
    assert len(list(run.path.iterdir())) == 3
    (place / "more/code.py").write_text("edited")
    run.export("student", source, {"README.md": "ours"})
    assert place.resolve() != before
    assert (place / "more/code.py").read_text() == "the store's more/code.py"


def test_an_export_links_where_the_disk_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    source, run = artifact(tmp_path), RunDir(tmp_path / "runs/r")
    run.path.mkdir()
    place = run.export("student", source, {"README.md": "ours"})
    assert (place / "model.safetensors").is_symlink()
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved/r/student/model.safetensors").read_text() == "the store's model.safetensors"
    assert (tmp_path / "moved/r/student/more/code.py").read_text() == "the store's more/code.py"
    assert (tmp_path / "moved/r/student/README.md").read_text() == "ours"


def test_a_copy_that_followed_the_links_is_refused_once_with_all_its_folders(tmp_path: Path) -> None:
    """Before anything is trained, the hidden link too."""
    source, run = artifact(tmp_path), RunDir(tmp_path / "runs/r")
    run.create()
    run.link("stages/distill", source.parent)
    run.export("student", source, {"README.md": "ours"})
    shutil.copytree(run.path, tmp_path / "runs/copy")  # follows links
    with pytest.raises(MachineError, match=r"are folders where links belong\. Move them away") as caught:
        RunDir(tmp_path / "runs/copy").create()
    for name in ("student", ".student", "stages/distill"):
        place = tmp_path / "runs/copy" / name
        assert str(place) in caught.value.message
        place.rename(tmp_path / name.replace("/", "-"))
    RunDir(tmp_path / "runs/copy").create()


def test_an_export_overwrites_no_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "r/student").mkdir(parents=True)
    with pytest.raises(MachineError, match="student is a folder"):
        RunDir(tmp_path / "r").export("student", artifact(tmp_path), {})
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["student"]
