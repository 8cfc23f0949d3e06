"""What a capture at a URL holds besides signals, fetched into a folder of this process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from potstill.cache.files import reading, system_of
from potstill.errors import ArtifactError
from potstill.store.artifacts import MANIFEST
from potstill.store.disk import hash_once, read_sealed

CACHES = "signals", "heldout"  # their files are read in ranges, and have checksums of their own


@cache
def fetched(url: str) -> Path:
    """A folder with all files of a capture but its caches, each compared with the manifest; it ends with the process.

    Raises:
        ArtifactError: fsspec or a protocol's package is missing, the URL cannot be read, there is no capture, or a
            file is not as it was written, or is outside of the capture.
    """
    system, root = system_of(url.rstrip("/"))
    folder = Path(tempfile.mkdtemp(prefix="potstill-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _fetch(system, root, MANIFEST, folder, url)
    for name, facts in read_sealed(folder / MANIFEST)["files"].items():
        if name.split("/")[0] in CACHES:
            continue
        file = _fetch(system, root, name, folder, url)
        if hash_once(file) != facts["sha256"]:
            raise ArtifactError(
                f"{url}/{name} is not as it was written: its hash differs.",
                fix="Copy the folder there again.",
            )
    return folder


def _fetch(system: Any, root: str, name: str, folder: Path, url: str) -> Path:
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):  # a manifest from elsewhere may name any place
        raise ArtifactError(
            f"the manifest of {url} names the file {name!r}, which is outside of it.",
            fix="Copy the folder there again, from a capture that you trust.",
        )
    try:
        content = reading(url, lambda: system.cat_file(f"{root}/{name}"))
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{url} is no folder of captured signals: it has no {name}.",
            fix="Copy the folder that a capture stage left there: runs/NAME/stages/capture (its target, not the link).",
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
