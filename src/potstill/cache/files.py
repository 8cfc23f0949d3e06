"""The files of a cache: memory-mapped where they are local, ranges of bytes through fsspec elsewhere."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

from potstill.cache.blocks import Bytes
from potstill.errors import ArtifactError

RESIDENT = 32 * 2**20  # bytes of a mapped file that may be read before its pages are given back


class Mapped:
    """A local file. What was read stays in the kernel's cache, and little of it in this process."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle:
            self._size = path.stat().st_size
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if self._size else None
        self._view = memoryview(self._map if self._map is not None else b"")
        self._read = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> Bytes:
        view = self._view[part]
        self._read += len(view)
        if self._read > RESIDENT and self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return view


class Remote:
    """A file of an fsspec file system; each slice is one request."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path
        self._size = int(system.size(path))

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice, /) -> Bytes:
        start, stop, _ = part.indices(self._size)
        return self._system.cat_file(self._path, start=start, end=stop) if stop > start else b""


class Folder:
    """The folder of a cache: a local path, or a URL that fsspec reads.

    Raises:
        ArtifactError: there is no such folder, or fsspec is needed and not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._system: Any = None
        self._root = self.name
        if "://" in self.name:
            try:
                import fsspec
            except ImportError as error:
                raise ArtifactError(f"{path} needs fsspec.", fix="pip install fsspec") from error
            self._system, self._root = fsspec.core.url_to_fs(self.name)
        elif not Path(path).is_dir():
            raise ArtifactError(f"{path} is no cache: there is no such folder.")

    def names(self) -> list[str]:
        """The names of its files, in order."""
        if self._system is None:
            return sorted(file.name for file in Path(self._root).iterdir())
        return sorted(str(name).rsplit("/", 1)[-1] for name in self._system.ls(self._root, detail=False))

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
            return self._system.cat_file(f"{self._root}/{name}")
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self.name}/{name} is missing.", fix="Give the folder of a teacher cache."
            ) from error
