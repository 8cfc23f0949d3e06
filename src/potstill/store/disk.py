"""How files and folders are written, hashed, locked, moved and removed, so that a kill leaves each whole or gone."""

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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from potstill.errors import ArtifactError

log = logging.getLogger("potstill")

SEAL = "seal"
GONE = ".gone"  # the end of a hidden name under which something is being deleted
MADE_AGAIN = "It is damaged: potstill run makes it again."


def real(path: Path) -> Path:
    """Where links lead; unlike `Path.resolve`, a loop of links raises nothing here."""
    return Path(os.path.realpath(path))


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
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            temporary.write_bytes(content)
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
        raise ArtifactError(f"{path} is missing.", fix=MADE_AGAIN) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not readable.", fix=MADE_AGAIN) from error
    if seal is not None and seal != _seal(value):
        raise ArtifactError(f"{path} is not as it was written: its seal differs.", fix=MADE_AGAIN)
    return value


def _seal(value: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(value, default=str))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def move_into_place(source: Path, place: Path) -> None:
    """Rename a finished file or folder, once all of it is on disk, with the rights that new files have here."""
    settle(source)
    source.rename(place)
    _sync(place.parent)


def settle(source: Path) -> None:
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
