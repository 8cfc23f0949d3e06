"""JSON-lines files: journals, answers and metrics, one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from potstill.store.artifacts import write_text


def append_line(path: Path, value: Mapping[str, Any]) -> None:
    """Append one JSON object to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as handle:
        handle.write(_line(value))


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file atomically."""
    write_text(path, "".join(map(_line, values)))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, [] where there is none; without half a last line, which a process
    that was killed leaves.

    Raises:
        ValueError: another line is no JSON.
    """
    if not path.is_file():
        return []
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
    return [*map(json.loads, lines[:-1]), *_whole(lines[-1:])]


def read_tail(path: Path, size: int = 65_536) -> list[dict[str, Any]]:
    """The objects within the last `size` bytes of a JSON-lines file that another process may be writing."""
    with path.open("rb") as handle:
        handle.seek(max(0, handle.seek(0, 2) - size))
        return _whole(handle.read().split(b"\n"))


def _whole(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    values = []
    for line in lines:
        with suppress(ValueError):  # a line that is cut, or not yet complete
            values.append(json.loads(line))
    return values


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"
