"""The folder of unpacked GGUF files, and what a killed process left half unpacked in it."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potstill.store import disk

START = ".unpacking-"
LOCK = ".lock"
OLD = 3600.0  # seconds after which a folder without a lock has no owner any more


def gguf_folder() -> Path:
    """Where unpacked GGUF files are kept for the next run."""
    cache = os.environ.get("POTSTILL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "potstill")
    return Path(cache).expanduser() / "gguf"


@contextmanager
def begun() -> Iterator[Path]:
    """A new folder to unpack into, locked as long as this process works on it and removed afterwards."""
    gguf_folder().mkdir(parents=True, exist_ok=True)
    for path in leftovers():
        disk.free(path)
    folder = Path(tempfile.mkdtemp(prefix=START, dir=gguf_folder()))
    with (folder / LOCK).open("a") as handle:
        disk.lock(handle)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def leftovers() -> list[Path]:
    """The folders that nobody unpacks into any more."""
    return [path for path in sorted(gguf_folder().glob(".*")) if _is_leftover(path)]


def _is_leftover(path: Path) -> bool:
    if path.name.endswith(disk.GONE):
        return True
    if not path.name.startswith(START):
        return False
    try:
        with (path / LOCK).open() as handle:
            return not disk.is_locked(handle)
    except OSError:  # of an earlier version, or not yet locked
        return time.time() - path.lstat().st_mtime > OLD
