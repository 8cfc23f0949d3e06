"""The content-addressed store of stage outputs.

A folder's key is the hash of everything that it was made from. The folder is built beside its place and renamed
into it, with a manifest that says what it is; readers compare every file with it and refuse what is damaged.
Hidden files of a folder under way are what only its build needs: they are never part of the artifact.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from potstill.errors import ArtifactError, MachineError
from potstill.store.disk import (
    MADE_AGAIN,
    discard,
    hash_once,
    hide,
    lock,
    make_way,
    move_into_place,
    read_sealed,
    real,
    settle,
    sweep,
    write_sealed,
    write_text,
)

log = logging.getLogger("potstill")

MANIFEST = "manifest.json"
BUILDING = ".building-"  # the start of a hidden name under which an artifact is being made
OWNERS = ".runs"  # in such a folder: the runs that began it
REGISTER = ".runs"  # in a store: notes of runs whose folders are not beside it
LOCKS = ".locks"
SHOWN = 16  # characters of a key in the name of its artifact
# Files that may be larger than memory, and whose own blocks have checksums that are compared as they are read.
SELF_CHECKED = re.compile(r"shard-\d+-\d+\.bin")
NAME = re.compile(rf"\w+-[0-9a-f]{{{SHOWN}}}")
_LONGEST_INPUT = 2000  # characters of JSON; a manifest holds the hash of what is longer


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
    """A folder of artifacts shared by runs; `run` is the folder of the one that works with it here."""

    root: Path
    run: Path | None = None

    def work(self, stage: str, key: str) -> Path:
        """Where the artifact is built; it survives an interruption, so that a stage can go on."""
        folder = self.root / f"{BUILDING}{_name(stage, key)}"
        if os.path.lexists(folder) and not folder.is_dir():
            make_way(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._sign(folder / OWNERS)
        sweep(self.root)
        return folder

    def _sign(self, owners: Path) -> None:
        """Note down whose work it is, for as long as it is not finished."""
        if self.run is None:
            return
        name = self.run.name if self._beside(self.run) else str(real(self.run))
        before = owners.read_text(encoding="utf-8").splitlines() if owners.is_file() else []
        if name not in before:
            write_text(owners, "\n".join([*before, name]) + "\n")

    def _beside(self, run: Path) -> bool:
        return real(run).parent == real(self.root).parent

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let nobody free anything while a run works."""
        with ExitStack() as stack:
            # What takes neither locks nor files loses nothing either; who builds there says so.
            with suppress(OSError):
                (self.root / LOCKS).mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context((self.root / LOCKS / "store").open("a"))
                with suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_SH)
                self._note_down()
            yield

    def _note_down(self) -> None:
        """Leave a note of a run whose folder is not beside the store, where nobody would look for it."""
        if self.run is None or self._beside(self.run):
            return
        place = str(real(self.run))
        (self.root / REGISTER).mkdir(exist_ok=True)
        write_text(self.root / REGISTER / hashlib.sha256(place.encode()).hexdigest()[:SHOWN], place)

    @contextmanager
    def unused(self) -> Iterator[bool]:
        """Let no run begin to use the store; false where one uses it.

        Raises:
            MachineError: locks do not work here, so nobody can say.
        """
        (self.root / LOCKS).mkdir(exist_ok=True)
        with (self.root / LOCKS / "store").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                raise MachineError(
                    f"{self.root} takes no locks, so nobody can say whether a run uses it.",
                    fix="See that no run is at work, and delete the folders that are named by hand.",
                ) from error
            yield True

    @contextmanager
    def alone(self, stage: str, key: str) -> Iterator[bool]:
        """Hold the lock on building this artifact; false where another process holds it. It ends with its process."""
        folder = self.root / LOCKS
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _name(stage, key)).open("a") as handle:
            yield lock(handle)

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished artifact of this key, if there is one.

        Raises:
            ArtifactError: it is damaged.
        """
        path = self.place(stage, key)
        if not path.is_dir():
            return None
        artifact = read(path)
        if artifact.key != key:
            raise ArtifactError(f"{path} holds another artifact than its name says.", fix=MADE_AGAIN)
        return artifact

    def alike(self, stage: str, name: str, value: Any) -> Iterator[Artifact]:
        """The finished artifacts of a stage in whose inputs `name` is `value`; damaged ones are left out."""
        for path in sorted(self.root.glob(f"{stage}-*")):
            try:
                if read_sealed(path / MANIFEST)["inputs"][name] != value:
                    continue
                artifact = read(path)
            except (ArtifactError, KeyError, TypeError):
                continue
            yield artifact

    def aside(self, stage: str, key: str) -> list[Path]:
        """Where damaged artifacts of this key were moved, the last one first."""
        found = self.root.glob(f".{_name(stage, key)}.aside-*")
        return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))

    def underway(self, stage: str) -> list[Path]:
        """The folders in which artifacts of a stage are being built, or were until an interruption."""
        return sorted(self.root.glob(f".building-{stage}-*"))

    def place(self, stage: str, key: str) -> Path:
        """Where the finished artifact is."""
        return self.root / _name(stage, key)

    def finish(self, stage: str, key: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Artifact:
        """Write the manifest with every file's size and hash, and move the work folder into its place."""
        work = self.work(stage, key)
        files = {
            str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": _hash(path)}
            for path in sorted(work.rglob("*"))
            if path.is_file() and path.name != MANIFEST and not _hidden(path.relative_to(work))
        }
        manifest = {
            "made_by": f"potstill {_version()}",
            "stage": stage,
            "key": key,
            "inputs": {name: _short(value) for name, value in inputs.items()},
            "facts": facts,
            "files": files,
            "complete": True,
        }
        write_sealed(work / MANIFEST, manifest)
        with suppress(ArtifactError):
            if (made := self.find(stage, key)) is not None:  # by a run on a file system without locks
                discard(work)
                return made
        return self._appear(work, self.place(stage, key))

    def finished(self, stage: str, key: str) -> Artifact | None:
        """The artifact whose build was killed as it moved into its place: it moves there now. None where none is whole."""
        work = self.root / f"{BUILDING}{_name(stage, key)}"
        try:
            return self._appear(work, self.place(stage, key)) if read(work).key == key else None
        except ArtifactError:
            return None

    def _appear(self, work: Path, place: Path) -> Artifact:
        scratch = [path for path in sorted(work.rglob("*")) if path.name.startswith(".")]
        if os.path.lexists(place):
            make_way(place)
        # What a build goes on with stays until the artifact is whole and on disk, and is away before it appears.
        settle(work)
        for path in scratch:
            with suppress(FileNotFoundError):  # inside a folder that is away already
                hide(path, self.root)
        move_into_place(work, place)
        sweep(self.root)
        return read(place)


def _hash(path: Path) -> str | None:
    """What a manifest holds of a file's content; None where its own blocks say it."""
    return None if SELF_CHECKED.fullmatch(path.name) else hash_once(path)


def _name(stage: str, key: str) -> str:
    return f"{stage}-{key[:SHOWN]}"


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _short(value: Any) -> Any:
    """An input as a manifest shows it: its hash where it grows with the rows."""
    text = json.dumps(value, sort_keys=True, default=str)
    if len(text) <= _LONGEST_INPUT:
        return value
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def read(path: Path) -> Artifact:
    """Open a finished folder; each file's content is compared with the manifest once a process.

    Raises:
        ArtifactError: no manifest, not complete, or a file that is missing or not as it was written.
    """
    manifest = read_sealed(path / MANIFEST)
    try:
        stated = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
        complete = manifest["complete"] and manifest.keys() >= {"stage", "key", "facts"}
    except (KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise ArtifactError(f"{path} is not complete.", fix=MADE_AGAIN)
    for name, (size, content) in stated.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            actual = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            raise ArtifactError(f"{file} is {actual}, the manifest says {size} bytes.", fix=MADE_AGAIN)
        if _hash(file) != content:
            raise ArtifactError(f"{file} is not as it was written: its hash differs.", fix=MADE_AGAIN)
    return Artifact(path, manifest)


def _version() -> str:
    try:
        return version("potstill")
    except PackageNotFoundError:
        return "from a folder of its source"
