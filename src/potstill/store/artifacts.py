"""The content-addressed store of stage outputs, and how every file and folder is written, locked and read.

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
import resource
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from potstill.errors import ArtifactError, MachineError

log = logging.getLogger("potstill")

MANIFEST = "manifest.json"
SEAL = "seal"
GONE = ".gone"  # the end of a hidden name under which something is being deleted
BUILDING = ".building-"  # the start of a hidden name under which an artifact is being made
OWNERS = ".runs"  # in such a folder: the runs that began it
REGISTER = ".runs"  # in a store: notes of runs whose folders are not beside it
LOCKS = ".locks"
SHOWN = 16  # characters of a key in the name of its artifact
NAME = re.compile(rf"\w+-[0-9a-f]{{{SHOWN}}}")
_LONGEST_INPUT = 2000  # characters of JSON; a manifest holds the hash of what is longer
_MADE_AGAIN = "It is damaged: potstill run makes it again."


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
            raise ArtifactError(f"{path} holds another artifact than its name says.", fix=_MADE_AGAIN)
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

    def underway(self, stage: str) -> list[Path]:
        """The folders in which artifacts of a stage are being built, or were until an interruption."""
        return sorted(self.root.glob(f".building-{stage}-*"))

    def place(self, stage: str, key: str) -> Path:
        """Where the finished artifact is."""
        return self.root / _name(stage, key)

    def finish(self, stage: str, key: str, inputs: Mapping[str, Any], facts: Mapping[str, Any]) -> Artifact:
        """Write the manifest with every file's size and hash, and move the work folder into its place."""
        work, place = self.work(stage, key), self.place(stage, key)
        scratch = [path for path in sorted(work.rglob("*")) if path.name.startswith(".")]
        files = {
            str(path.relative_to(work)): {"bytes": path.stat().st_size, "sha256": hash_once(path)}
            for path in sorted(work.rglob("*"))
            if path.is_file() and path.name != MANIFEST and not _hidden(path.relative_to(work))
        }
        manifest = {
            "made_by": f"potstill {version('potstill')}",
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
        if os.path.lexists(place):
            make_way(place)
        # What a build goes on with stays until the artifact is whole and on disk, and is away before it appears.
        _settle(work)
        for path in scratch:
            with suppress(FileNotFoundError):  # inside a folder that is away already
                hide(path, self.root)
        move_into_place(work, place)
        sweep(self.root)
        return read(place)


def _name(stage: str, key: str) -> str:
    return f"{stage}-{key[:SHOWN]}"


def real(path: Path) -> Path:
    """Where links lead; unlike `Path.resolve`, a loop of links raises nothing here."""
    return Path(os.path.realpath(path))


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
        raise ArtifactError(f"{path} is not complete.", fix=_MADE_AGAIN)
    for name, (size, content) in stated.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            actual = f"{file.stat().st_size} bytes" if file.is_file() else "missing"
            raise ArtifactError(f"{file} is {actual}, the manifest says {size} bytes.", fix=_MADE_AGAIN)
        if hash_once(file) != content:
            raise ArtifactError(f"{file} is not as it was written: its hash differs.", fix=_MADE_AGAIN)
    return Artifact(path, manifest)


_hashes: dict[tuple[int, int, int, int], str] = {}


def hash_once(path: Path) -> str:
    """`file_hash`, computed once a process for a file of the same inode, size and time."""
    facts = path.stat()
    identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)
    if identity not in _hashes:
        _hashes[identity] = file_hash(path)
    return _hashes[identity]


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with naming(path), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that does not, as those of reading and writing do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the new one, in UTF-8."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            temporary.write_text(text, encoding="utf-8", newline="\n")
        if path.is_dir() and not path.is_symlink():
            make_way(path)
        move_into_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of JSON that any reader takes: ASCII, no NaN."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False, default=str) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` of an object with a hash of itself, by which a changed byte shows."""
    write_json(path, {**value, SEAL: _seal(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Read what `write_sealed` wrote. Without a seal it is of an earlier version, and taken as it is.

    Raises:
        ArtifactError: it is missing, unreadable or not as it was written.
    """
    try:
        with naming(path):
            value = json.loads(path.read_text(encoding="utf-8"))
        seal = value.pop(SEAL, None)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ArtifactError(f"{path} is missing.", fix=_MADE_AGAIN) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable.", fix=_MADE_AGAIN) from error
    if seal is not None and seal != _seal(value):
        raise ArtifactError(f"{path} is not as it was written: its seal differs.", fix=_MADE_AGAIN)
    return value


def _seal(value: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(value, default=str))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def move_into_place(source: Path, place: Path) -> None:
    """Rename a finished file or folder, once all of it is on disk, with the rights that new files have here."""
    _settle(source)
    source.rename(place)
    _sync(place.parent)


def _settle(source: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in (*source.rglob("*"), source):
        if path.is_file() and not path.is_symlink():
            with suppress(PermissionError):  # somebody else's file, or a file system without rights
                path.chmod(0o666 & ~umask)
        _sync(path)


def discard(path: Path) -> None:
    """Remove a file or folder, if there is one, under a hidden name: a kill leaves no part of it in its place."""
    with suppress(FileNotFoundError):
        _remove(hide(path))


def hide(path: Path, folder: Path | None = None) -> Path:
    """Give a file or folder the hidden name, in its folder or this one, under which `sweep` removes it."""
    return path.rename((folder or path.parent) / f".{uuid4().hex}{GONE}")


def sweep(folder: Path) -> None:
    """Remove what `discard` was killed over."""
    for path in folder.glob(f".*{GONE}"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_way(path: Path) -> None:
    """Move aside what stands where potstill writes, with a warning that says where it is now."""
    log.warning("%s stands where something else belongs and is moved to %s", path, set_aside(path))


def set_aside(path: Path) -> Path:
    """Rename what stands where something else belongs, to a hidden name beside it that is returned."""
    number = 1
    while os.path.lexists(aside := path.with_name(f".{path.name}.aside-{number}")):
        number += 1
    return path.rename(aside)


def is_aside(path: Path) -> bool:
    """Whether it is where `set_aside` puts things."""
    return re.fullmatch(r"\..+\.aside-\d+", path.name) is not None


def free(path: Path) -> int:
    """Delete a file or folder as `discard` does, and return how many bytes that freed."""
    hidden = hide(path) if not path.name.endswith(GONE) else path
    before = size_of(hidden)
    _remove(hidden)
    return before - size_of(hidden)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; a link is as large as itself. 0 where nothing is."""
    if path.is_dir() and not path.is_symlink():
        return sum(map(size_of, path.iterdir()))
    return path.lstat().st_size if os.path.lexists(path) else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
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
    """Whether a process holds the lock on a file; where the file system has no locks, nobody does."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def peak_rss() -> int:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
