"""Writes, locks and the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from potstill.store import artifacts


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

    monkeypatch.setattr(artifacts.os, "fsync", fsync)
    artifacts.move_into_place(source, place)
    assert sorted(synced[:-1]) == [("building", False), ("student", False), ("weights", False)]
    assert synced[-1] == (tmp_path.name, True)
    assert (place / "student" / "weights").read_text() == "w"


def test_a_file_is_the_old_one_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    artifacts.write_json(file, {"n": 1})

    def killed(descriptor: int) -> None:
        raise OSError("killed")

    monkeypatch.setattr(artifacts.os, "fsync", killed)
    with pytest.raises(OSError, match="killed"):
        artifacts.write_json(file, {"n": 2})
    assert file.read_text() == '{\n  "n": 1\n}\n'


def test_a_lock_is_seen_by_others_until_its_file_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with file.open("a") as owner, file.open() as reader:
        assert not artifacts.is_locked(reader)
    with file.open("a") as owner, file.open() as reader, file.open() as other:
        assert artifacts.lock(owner)
        assert artifacts.is_locked(reader)
        assert artifacts.is_locked(other)
        assert not artifacts.lock(other)
    with file.open() as reader:
        assert not artifacts.is_locked(reader)
