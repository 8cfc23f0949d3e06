"""The content-addressed store of stage outputs, and how every file and folder is written, locked and read.

A folder's key is the hash of everything that it was made from. The folder is built beside its place and renamed
into it, with a manifest that says what it is; readers refuse what is incomplete or damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from potstill.errors import ArtifactError

log = logging.getLogger("potstill")

MANIFEST = "manifest.json"
_START_AGAIN = "Delete the folder and run again."


@dataclass(frozen=True)
class Artifact:
    """A complete folder of the store."""

    path: Path
    manifest: Mapping[str, Any]
    reused: bool = False  # this run did not build it

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage states for later readers (counts, seconds, …)."""
        return self.manifest["facts"]


def key_of(stage: str, inputs: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of what a stage reads."""
    canonical = json.dumps({"stage": stage, "inputs": inputs}, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True)
class Store:
    """A folder of artifacts shared by runs."""

    root: Path

    def work(self, stage: str, key: str) -> Path:
        """Where the artifact is built; it survives an interruption, so that a stage can go on."""
        folder = self.root / f".building-{_name(stage, key)}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def alone(self, stage: str, key: str) -> Iterator[bool]:
        """Hold the lock on building this artifact; false where another process holds it. It ends with its process."""
        folder = self.root / ".locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _name(stage, key)).open("a") as handle:
            yield lock(handle)

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact of this key, if there is one."""
        path = self.root / _name(stage, key)
        return read(path) if path.is_dir() else None

    def finish(self, stage: str, key: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Artifact:
        """Write the manifest with every file's size and hash, and move the work folder into its place."""
        work, place = self.work(stage, key), self.root / _name(stage, key)
        files = {
            str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
            for path in sorted(work.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        manifest = {
            "made_by": f"potstill {version('potstill')}",
            "stage": stage,
            "key": key,
            "inputs": inputs,
            "facts": facts,
            "files": files,
            "complete": True,
        }
        write_json(work / MANIFEST, manifest)
        if place.is_dir():
            shutil.rmtree(work)
        else:
            move_into_place(work, place)
        return read(place)


def _name(stage: str, key: str) -> str:
    return f"{stage}-{key[:16]}"


def read(path: Path) -> Artifact:
    """Open a finished folder.

    Raises:
        ArtifactError: no manifest, not complete, or a file that is missing or of another size.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} has no readable manifest.", fix=_START_AGAIN) from error
    if not manifest.get("complete"):
        raise ArtifactError(f"{path} is not complete.", fix=_START_AGAIN)
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            actual = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            raise ArtifactError(
                f"{file} is {actual}, the manifest says {facts['bytes']} bytes.",
                fix="The folder is damaged: delete it and run again.",
            )
    return Artifact(path, manifest)


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, in UTF-8."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON that any reader takes: ASCII, no NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False, default=str) + "\n")


def move_into_place(source: Path, place: Path) -> None:
    """Rename a finished file or folder, once all of it is on disk."""
    for path in (*source.rglob("*"), source):
        _sync(path)
    source.rename(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(handle: IO[str]) -> bool:
    """Lock a file for this process until it is closed; false where another process holds it.

    On a file system without locks the answer is true, with a warning.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        log.warning("%s takes no locks: let no other process use it at the same time", handle.name)
    return True


def is_locked(handle: IO[str]) -> bool:
    """Whether a process holds the lock on a file; true where the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def peak_rss() -> int:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
