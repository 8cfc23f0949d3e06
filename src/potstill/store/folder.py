"""A run folder: one owner, the recipe as it ran, links to stage outputs, report and summary."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from potstill.errors import ArtifactError, MachineError
from potstill.store import disk

STATE = "run.json"
RECIPE = "recipe.yaml"
WEIGHTS = ".safetensors"
MADE = "made"  # the artifacts that a run has made or found, in its state
# What the values of a state are, and those within them.
_VALUES: dict[str, Any] = {
    "base": str, "recipe_hash": str, "status": str, "stage": str, "summary_sha256": str,
    "error": dict | None, "training": dict | None,
}  # fmt: skip
_WITHIN: dict[str, dict[str, Any]] = {
    "error": {"message": str, "fix": str, "path": str}, "training": {"metrics": str, "steps": int | None},
}  # fmt: skip


@dataclass(frozen=True)
class RunDir:
    """`path` is the folder of one run."""

    path: Path

    def create(self) -> None:
        """Make the folder.

        Raises:
            MachineError: the place cannot be written, or there is a folder where a link belongs.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            test = self.path / f".write-test.{os.getpid()}.tmp"
            test.write_text("")
            test.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(
                f"cannot write to {self.path}: {error.strerror}.",
                fix="Choose another folder with `runs:` in the recipe, or free it.",
            ) from error
        try:
            test.symlink_to("run.json")
            test.unlink(missing_ok=True)
        except OSError as error:
            raise MachineError(
                f"{self.path} takes no links: {error.strerror}.",
                fix="Choose a folder on another file system with `runs:` in the recipe.",
            ) from error
        _refuse_folder(self.path / "student", self.path / ".student", *(self.path / "stages").glob("*"))

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the folder for this process, until it exits at the latest.

        Raises:
            ArtifactError: another process holds it.
        """
        with (self.path / ".lock").open("a+") as handle:
            if not disk.lock(handle):
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise ArtifactError(
                    f"{self.path} belongs to process {owner}, which is still running.",
                    fix="Wait for it, stop it, or give this run another name: name=…",
                )
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
            for leftover in self.path.glob(".*.tmp"):  # of a process that was killed
                disk.discard(leftover)
            disk.sweep(self.path)
            yield

    def owner(self) -> int | None:
        """The process that holds the folder, -1 for one without a number; None when it is free."""
        place = self.path / ".lock"
        if not place.is_file():
            return None
        with place.open() as handle:
            if not disk.is_locked(handle):
                return None
            text = handle.read().strip()
            return int(text) if text.isdigit() else -1

    def state(self) -> dict[str, Any]:
        """The values that `update` has merged so far; {} for a new folder."""
        try:
            state = dict(json.loads((self.path / STATE).read_text(encoding="utf-8")).items())
            _require(_VALUES, state)
            for name, kinds in _WITHIN.items():
                if state.get(name) is not None:
                    _require(kinds, dict.fromkeys(kinds) | state[name])
            return state
        except FileNotFoundError:
            return {}
        except (IsADirectoryError, ValueError, AttributeError, RecursionError) as error:
            raise ArtifactError(
                f"{self.path / STATE} is not readable.", fix="Delete it and run the recipe again."
            ) from error

    def date(self) -> datetime:
        """When the run was first started, to the second; now for a run that was not.

        Raises:
            ArtifactError: the state cannot be read.
        """
        text = None
        with suppress(OSError):  # a check needs no folder, and a run says what is wrong with it
            text = self.state().get("date")
        try:
            return datetime.now().replace(microsecond=0) if text is None else datetime.fromisoformat(text)
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"{self.path / STATE} holds no date: {text!r}.", fix="Delete it and run the recipe again."
            ) from error

    def store_root(self) -> Path:
        """Where its artifacts are: beside it, or where it was begun when a link led to it then."""
        state, beside = self.state(), self.path.parent / ".store"
        root, place = state.get("store"), state.get("place")
        if not isinstance(root, str) or place != str(disk.real(self.path)) or root == str(disk.real(beside)):
            return beside
        return Path(root) if Path(root).is_dir() else beside

    def update(self, values: Mapping[str, Any]) -> None:
        """Merge values into the state, atomically."""
        disk.write_json(self.path / STATE, self.state() | dict(values))

    def update_at_end(self, values: Mapping[str, Any]) -> None:
        """Merge values into the state when a run ends, without an error that would hide the run's own.

        Where a full disk has no room for a new file, the old one is overwritten."""
        try:
            self.update(values)
        except (OSError, ArtifactError):
            with suppress(OSError, ArtifactError), (self.path / STATE).open("r+") as handle:
                text = json.dumps(self.state() | dict(values), ensure_ascii=True, default=str)
                handle.write(text)
                handle.truncate()

    def link(self, name: str, target: Path) -> None:
        """A relative link `name` to a folder of the store; replaces an older one atomically.

        Raises:
            MachineError: there is a folder in its place.
        """
        place = self.path / name
        _refuse_folder(place)
        if os.path.lexists(place.parent) and not place.parent.is_dir():
            disk.make_way(place.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        disk.discard(temporary)
        # The folder may be a link itself, and `..` starts where it leads.
        temporary.symlink_to(os.path.relpath(target.resolve(), place.parent.resolve()))
        temporary.rename(place)

    def export(self, name: str, source: Path, texts: Mapping[str, str]) -> Path:
        """Put the files of a folder of the store and `texts` beside them behind the link `name`, and return that.

        The folder is the run's own: what belongs to one run stays out of an artifact that several share. Its weights
        are hard links, and so whole files for whoever copies it; where the disk has none, symbolic ones. The others
        are small and copied, so that whoever edits one in place changes no artifact. A hidden link `.name` to the
        store says which artifact the run refers to. One that is there already and the same stays where it is, for
        whoever reads it.

        Raises:
            MachineError: there is a folder in the link's place.
        """
        place = self.path / name
        _refuse_folder(place)
        self.link(f".{name}", source)
        files = {path: source / path for path in _files_in(source) if str(path) not in texts}
        if place.resolve().name != name or not _holds(place, files, texts):
            # Where the link leads has its name too: a model is called by the folder that it is in.
            made = self.path / f".{name}-{uuid4().hex}" / name
            for path, file in files.items():
                (made / path).parent.mkdir(parents=True, exist_ok=True)
                if file.suffix == WEIGHTS:
                    _share(file, made / path)
                else:
                    shutil.copyfile(file, made / path)
            for text_name, text in texts.items():
                disk.write_text(made / text_name, text)
            self.link(name, made)
        for older in self.path.glob(f".{name}-*"):
            if not place.resolve().is_relative_to(older.resolve()):
                disk.discard(older)
        return place

    def keep_links(self, folder: str, names: Collection[str]) -> None:
        """Remove the links in `folder` that are not named."""
        for place in (self.path / folder).glob("*"):
            if place.is_symlink() and place.name not in names:
                place.unlink()


class Onlooker(RunDir):
    """A run folder in the other processes of a run: the first one owns and writes it."""

    def create(self) -> None:
        """Leave it to the first process."""

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Rely on the first process's lock."""
        yield

    def update(self, values: Mapping[str, Any]) -> None:
        """Leave it to the first process."""

    def link(self, name: str, target: Path) -> None:
        """Leave it to the first process."""

    def keep_links(self, folder: str, names: Collection[str]) -> None:
        """Leave it to the first process."""


def _files_in(folder: Path) -> list[Path]:
    """The files below a folder, as paths within it."""
    return sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())


def _holds(folder: Path, files: Mapping[Path, Path], texts: Mapping[str, str]) -> bool:
    """Whether a folder holds these files and texts, and nothing else."""
    if _files_in(folder) != sorted([*files, *map(Path, texts)]):
        return False
    same = all(
        (folder / path).samefile(file)
        if file.suffix == WEIGHTS
        else (folder / path).read_bytes() == file.read_bytes()
        for path, file in files.items()
    )
    return same and all((folder / name).read_bytes() == text.encode() for name, text in texts.items())


def _share(file: Path, place: Path) -> None:
    """Let a file stand at a second place without a copy."""
    try:
        place.hardlink_to(file)
    except OSError:  # another disk, somebody else's file, or a disk without hard links
        place.symlink_to(os.path.relpath(file.resolve(), place.parent.resolve()))


def _require(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Require that the values that are there are of these kinds."""
    for name, kind in kinds.items():
        if name in values and not isinstance(values[name], kind):
            raise ValueError(f"{name} is {values[name]!r}")


def _refuse_folder(*places: Path) -> None:
    # A copy that followed the links leaves folders, and somebody's files are never deleted.
    folders = [place for place in places if place.is_dir() and not place.is_symlink()]
    if folders:
        names, several = ", ".join(map(str, folders)), len(folders) > 1
        raise MachineError(
            f"{names} {'are folders where links belong' if several else 'is a folder where a link belongs'}.",
            fix=f"Move {'them' if several else 'it'} away and run the same command again.",
        )
