"""JSON-lines files: journals, answers and metrics, one object a line.

A line that is appended carries a checksum of itself, since the file that it is in has no hash yet.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill.store.disk import naming, write_text

log = logging.getLogger("potstill")

CHECK = "crc32"


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object and its checksum to a JSON-lines file."""
    with naming(path), path.open("a", encoding="utf-8") as handle:
        handle.write(_line({**value, CHECK: _check(value)}))


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    write_text(path, "".join(map(_line, values)))


def write_journal(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file atomically, each line with its checksum, to append to it."""
    write_lines(path, ({**value, CHECK: _check(value)} for value in values))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, [] where there is none; without half a last line, which a process
    that was killed leaves.

    Raises:
        ValueError: another line is no JSON, or not as it was written.
    """
    lines = _lines(path)
    return [*map(_object, lines[:-1]), *_whole(lines[-1:])]


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The objects of a journal that are as they were written; a warning counts the others.

    A line without a checksum is none of them: it may be a damaged one that lost its checksum's name.
    """
    lines = _lines(path)
    values = _whole(lines[:-1], checked=True)
    if lost := len(lines[:-1]) - len(values):
        log.warning("%s has %d damaged lines, which are left out", path, lost)
    return values + _whole(lines[-1:], checked=True)


def read_journals(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal and of those beside it whose names go on with more: of other processes and workers."""
    journals = sorted(path.parent.glob(f"{path.name}*"))
    return [line for journal in journals for line in read_journal(journal)]


def join_journals(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write the lines of all journals into the first one, and remove the others."""
    write_journal(path, values)
    for journal in path.parent.glob(f"{path.name}.*"):
        journal.unlink()


def read_tail(path: Path, size: int = 65_536) -> list[dict[str, Any]]:
    """The objects within the last `size` bytes of a JSON-lines file that another process may be writing."""
    with naming(path), path.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, 2) - size))
        return _whole(handle.read().split(b"\n"))


def _lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    with naming(path):
        content = path.read_bytes()
    return [line for line in content.split(b"\n") if line.strip()]


def _whole(lines: Iterable[bytes], *, checked: bool = False) -> list[dict[str, Any]]:
    values = []
    for line in lines:
        with suppress(ValueError):  # a line that is cut, damaged, or not yet complete
            values.append(_object(line, checked=checked))
    return values


def _object(line: bytes, *, checked: bool = False) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no object")
    check = value.pop(CHECK, None)
    if (checked or check is not None) and check != _check(value):
        raise ValueError(f"the checksum of a line is {_check(value)}, not {check}")
    return value


def _check(value: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"
