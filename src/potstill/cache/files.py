"""The files of a cache: memory-mapped where they are local, ranges of bytes through fsspec elsewhere."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from potstill.cache.blocks import Bytes
from potstill.errors import ArtifactError

T = TypeVar("T")
RESIDENT = 32 * 2**20  # bytes of all mapped files that may be read before their pages are given back
FAULT = 2**16  # bytes that the kernel maps around one that is read


class Mapped:
    """A local file. What was read stays in the kernel's cache, and little of it in this process, however many
    files are mapped."""

    _every: ClassVar[WeakSet[Mapped]] = WeakSet()
    _read: ClassVar[int] = 0  # bytes of all files since pages were given back
    _lock: ClassVar[Lock] = Lock()

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle:
            self._size = path.stat().st_size
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if self._size else None
        self._view = memoryview(self._map if self._map is not None else b"")
        with Mapped._lock:
            Mapped._every.add(self)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> Bytes:
        view = self._view[part]
        with Mapped._lock:
            Mapped._read += max(len(view), FAULT)
            if Mapped._read > RESIDENT and hasattr(mmap, "MADV_DONTNEED"):
                for one in Mapped._every:
                    if one._map is not None:
                        one._map.madvise(mmap.MADV_DONTNEED)
                Mapped._read = 0
        return view

    def find(self, what: bytes, start: int) -> int:
        """Where these bytes stand at or behind `start`, -1 if nowhere."""
        return -1 if self._map is None else self._map.find(what, start)


def _unlocked() -> None:
    """Give a forked process a lock that no thread of its parent holds."""
    Mapped._lock = Lock()


os.register_at_fork(after_in_child=_unlocked)


def system_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path there.

    Raises:
        ArtifactError: fsspec, or the package of the URL's protocol, is missing, or there is no such protocol.
    """
    try:
        import fsspec
    except ImportError as error:
        raise ArtifactError(f"{url} needs fsspec.", fix="pip install fsspec") from error
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ArtifactError(
            f"fsspec cannot read {url}: {error}.",
            fix="pip install the package of its protocol (s3fs for s3://).",
        ) from error


def reading(where: str, read: Callable[[], T]) -> T:
    """What a file system gives; each has errors of its own, of the network or of a key, which are named by the URL.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: it cannot be read.
    """
    try:
        return read()
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever the protocol's package raises
        raise ArtifactError(
            f"{where} cannot be read: {type(error).__name__}: {error}.",
            fix="Check the address, the network and the key of its storage; the same command goes on.",
        ) from error


class Remote:
    """A file of an fsspec file system; each slice is one request."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path
        self._size = int(reading(path, lambda: system.size(path)))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> Bytes:
        start, stop, _ = part.indices(self._size)
        if stop <= start:
            return b""
        return reading(self._path, lambda: self._system.cat_file(self._path, start=start, end=stop))


class Folder:
    """The folder of a cache: a local path, or a URL that fsspec reads.

    Raises:
        ArtifactError: there is no such folder, or fsspec cannot read the URL.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._system: Any = None
        self._root = self.name
        if "://" in self.name:
            self._system, self._root = system_of(self.name)
        elif not Path(path).is_dir():
            raise ArtifactError(f"{path} is no cache: there is no such folder.")

    @property
    def absolute(self) -> str:
        """Its name for a process with another working directory."""
        return self.name if "://" in self.name else str(Path(self.name).absolute())

    def names(self) -> list[str]:
        """The names of its files, in order."""
        if self._system is None:
            return sorted(file.name for file in Path(self._root).iterdir())
        names = reading(self.name, lambda: self._system.ls(self._root, detail=False))
        return sorted(str(name).rsplit("/", 1)[-1] for name in names)

    def open(self, name: str) -> Mapped | Remote:
        """A file for reading in parts."""
        if self._system is None:
            return Mapped(Path(self._root) / name)
        return Remote(self._system, f"{self._root}/{name}")

    def read(self, name: str) -> bytes:
        """All bytes of a small file.

        Raises:
            ArtifactError: it is missing.
        """
        try:
            if self._system is None:
                return (Path(self._root) / name).read_bytes()
            return reading(self.name, lambda: self._system.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self.name}/{name} is missing.", fix="Give the folder of a teacher cache."
            ) from error
