"""Writes, locks and the store."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from potstill.errors import ArtifactError
from potstill.store import artifacts, disk
from potstill.store.lines import append_line


def test_a_finished_folder_is_on_disk_before_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file and folder of it, and after the rename the folder that it appears in."""
    source, place = tmp_path / "building", tmp_path / "place"
    (source / "student").mkdir(parents=True)
    (source / "student" / "weights").write_text("w")
    synced: list[tuple[str, bool]] = []

    def fsync(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, place.is_dir()))

    monkeypatch.setattr(disk.os, "fsync", fsync)
    disk.move_into_place(source, place)
    assert sorted(synced[:-1]) == [("building", False), ("student", False), ("weights", False)]
    assert synced[-1] == (tmp_path.name, True)
    assert (place / "student" / "weights").read_text() == "w"


def test_a_file_is_the_old_one_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    disk.write_json(file, {"n": 1})

    def killed(descriptor: int) -> None:
        raise OSError("killed")

    monkeypatch.setattr(disk.os, "fsync", killed)
    with pytest.raises(OSError, match="killed"):
        disk.write_json(file, {"n": 2})
    assert file.read_text() == '{\n  "n": 1\n}\n'


def test_a_lock_is_seen_by_others_until_its_file_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with file.open("a") as owner, file.open() as reader:
        assert not disk.is_locked(reader)
    with file.open("a") as owner, file.open() as reader, file.open() as other:
        assert disk.lock(owner)
        assert disk.is_locked(reader)
        assert disk.is_locked(other)
        assert not disk.lock(other)
    with file.open() as reader:
        assert not disk.is_locked(reader)


STUDENT = "student/model.safetensors"


def made(root: Path, **inputs: object) -> artifacts.Artifact:
    """A small finished artifact."""
    store, key = artifacts.Store(root), artifacts.key_of("train", inputs)
    work = store.work("train", key)
    (work / "student").mkdir()
    (work / STUDENT).write_bytes(b"weights")
    (work / "metrics.jsonl").write_text('{"step": 1}\n')
    return store.finish("train", key, inputs, {"steps": 3})


def found(artifact: artifacts.Artifact) -> artifacts.Artifact | None:
    return artifacts.Store(artifact.path.parent).find("train", artifact.key)


def rewrite(name: str, old: bytes, new: bytes) -> Callable[[Path], object]:
    """Replace bytes of a file of an artifact."""

    def change(path: Path) -> None:
        content = (path / name).read_bytes()
        assert old in content
        (path / name).write_bytes(content.replace(old, new, 1))

    return change


def folder_instead(path: Path) -> None:
    (path / STUDENT).unlink()
    (path / STUDENT).mkdir()


DAMAGES = {
    "a byte of the weights": (rewrite(STUDENT, b"w", b"W"), STUDENT),
    "a byte of the metrics": (rewrite("metrics.jsonl", b"1", b"2"), "metrics.jsonl"),
    "a longer file": (rewrite(STUDENT, b"w", b"ww"), STUDENT),
    "a missing file": (lambda path: (path / STUDENT).unlink(), STUDENT),
    "a folder in place of a file": (folder_instead, STUDENT),
    "a fact": (rewrite("manifest.json", b'"steps": 3', b'"steps": 4'), "manifest.json"),
    "a name in the manifest": (rewrite("manifest.json", b'"files"', b'"filet"'), "manifest.json"),
    "a hash in the manifest": (rewrite("manifest.json", b'"sha256": "', b'"sha256": "0'), "manifest.json"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda path: (path / "manifest.json").write_text("{"), "manifest.json"),
    "a list as the manifest": (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json"),
    "a manifest in no encoding": (
        lambda path: (path / "manifest.json").write_bytes(b"\xff"),
        "manifest.json",
    ),
    "an empty manifest": (lambda path: (path / "manifest.json").write_text("{}"), "not complete"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_artifact_is_refused_with_the_file(tmp_path: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    artifact = made(tmp_path)
    assert found(artifact) == artifact
    damage(artifact.path)
    with pytest.raises(ArtifactError, match=words):
        found(artifact)


def test_an_artifact_under_the_name_of_another_is_refused(tmp_path: Path) -> None:
    one, other = made(tmp_path, a=1), made(tmp_path, a=2)
    shutil.rmtree(one.path)
    other.path.rename(one.path)
    with pytest.raises(ArtifactError, match="another artifact"):
        found(one)


def test_a_file_is_hashed_once_while_it_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    monkeypatch.setattr(disk, "file_hash", lambda path: hashed.append(path.name) or "h")
    artifact = made(tmp_path)
    for _ in range(3):
        found(artifact)
    assert sorted(hashed) == ["metrics.jsonl", "model.safetensors"]


def test_a_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    artifact = made(tmp_path)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    del manifest["seal"]
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))
    assert found(artifact).facts == {"steps": 3}


def test_a_manifest_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Small inputs are shown as they are, of large ones the hash."""
    sizes = []
    for count in (1000, 100_000):
        artifact = made(tmp_path / str(count), rows=list(range(count)), teacher="t")
        assert artifact.manifest["inputs"]["teacher"] == "t"
        sizes.append((artifact.path / "manifest.json").stat().st_size)
    assert sizes[0] == sizes[1]


def test_what_only_a_build_needs_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    store = artifacts.Store(tmp_path)
    work = store.work("train", "k" * 64)
    for name in (
        "a.json",
        ".tmpXYZ",
        "student/b.json",
        "student/.b.json.7.tmp",
        ".checkpoints/step-1/w",
        ".c/.d",
    ):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    artifact = store.finish("train", "k" * 64, {}, {})
    assert artifact.manifest["files"].keys() == {"a.json", "student/b.json"}
    files = {str(path.relative_to(artifact.path)) for path in artifact.path.rglob("*") if path.is_file()}
    assert files == {"a.json", "student/b.json", "manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == [artifact.path.name]


def test_a_build_keeps_what_it_goes_on_with_until_the_artifact_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = artifacts.Store(tmp_path)
    (store.work("train", "k" * 64) / ".journal").write_text("answers")

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(artifacts, "write_sealed", full)
    with pytest.raises(OSError, match="full"):
        store.finish("train", "k" * 64, {}, {})
    assert (store.work("train", "k" * 64) / ".journal").read_text() == "answers"


@pytest.mark.parametrize("what", ["a file", "a folder", "a link to nowhere"])
def test_what_stands_in_the_place_of_an_artifact_is_moved_aside(tmp_path: Path, what: str, caplog) -> None:
    place = artifacts.Store(tmp_path).place("train", artifacts.key_of("train", {}))
    if what == "a folder":
        place.mkdir()
        (place / "mine").write_text("mine")
    elif what == "a file":
        place.write_text("mine")
    else:
        place.symlink_to("nowhere")
    assert made(tmp_path).path == place
    assert str(place) in caplog.text
    (aside,) = tmp_path.glob(".*.aside-1")
    assert os.path.lexists(aside)


def test_a_folder_in_the_place_of_a_file_is_moved_aside(tmp_path: Path, caplog) -> None:
    for number in (1, 2):
        (tmp_path / "report.html").unlink(missing_ok=True)
        (tmp_path / "report.html").mkdir()
        (tmp_path / "report.html/mine").write_text(str(number))
        disk.write_text(tmp_path / "report.html", "page")
        assert (tmp_path / "report.html").read_text() == "page"
        assert (tmp_path / f".report.html.aside-{number}/mine").read_text() == str(number)
    assert "report.html stands where something else belongs" in caplog.text


def test_a_kill_over_a_removal_leaves_nothing_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left has a hidden name, and goes with the next sweep."""

    def killed(path: Path, **options: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "checkpoints/step-1").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            disk.discard(tmp_path / "checkpoints")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".")
    disk.sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    disk.discard(tmp_path / "checkpoints")


def test_stored_files_have_the_rights_of_new_files(tmp_path: Path) -> None:
    """The library that writes weights leaves them to their owner alone."""
    (tmp_path / "new").write_text("")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/w").write_text("")
    (tmp_path / "a/b/w").chmod(0o600)
    disk.move_into_place(tmp_path / "a", tmp_path / "place")
    assert (tmp_path / "place/b/w").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_nobody_holds_a_lock_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(disk.fcntl, "flock", refused)
    with (tmp_path / "lock").open("a") as handle:
        assert not disk.is_locked(handle)


def test_a_file_that_cannot_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's error names the file, and the artifact stays where it is."""
    artifact = made(tmp_path)

    def broken(handle: object, name: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk, "_hashes", {})
    monkeypatch.setattr(disk.hashlib, "file_digest", broken)
    with pytest.raises(OSError, match="metrics.jsonl") as caught:
        found(artifact)
    assert caught.value.errno == errno.EIO
    assert artifact.path.is_dir()


@pytest.mark.parametrize("write", [disk.write_text, lambda path, _: append_line(path, {"n": 1})])
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, write: Callable[[Path, str], None]) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        with pytest.raises(OSError, match="answers.jsonl") as caught:
            write(tmp_path / "answers.jsonl", "text")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
