"""List what the store of a folder of runs holds, and free what no run refers to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from potstill.errors import ArtifactError, RecipeError
from potstill.report.numbers import size
from potstill.store import disk, unpacking
from potstill.store.artifacts import BUILDING, Store
from potstill.store.usage import Entry, Usage, read_usage, store_of

NOTHING = "Nothing to free: runs refer to everything in it."


@dataclass(frozen=True)
class Freed:
    """What was freed, or would be: `why_not` says why nothing may be."""

    usage: Usage
    entries: tuple[Entry, ...]  # the leftovers of unpacking models among them
    why_not: str
    bytes: int | None  # that were freed; None where nothing was to be done yet

    def text(self) -> str:
        """A line an entry, and what was done or is to be done."""
        total = sum(entry.bytes for entry in self.entries)
        lines = _table(self.entries)
        if self.why_not:
            return "\n".join([*lines, f"nothing is freed: {self.why_not}"])
        if not self.entries:
            return NOTHING
        if self.bytes is None:
            return "\n".join([*lines, f"{size(total)} ({total} bytes) can be freed; --yes does it."])
        return "\n".join([*lines, f"freed {size(self.bytes)} ({self.bytes} bytes)"])

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON-safe values."""
        return {
            "store": str(self.usage.store.root),
            "entries": [_values(entry) for entry in self.entries],
            "freeable_bytes": sum(entry.bytes for entry in self.entries),
            "freed_bytes": self.bytes,
            "why_not": self.why_not,
        }


def find_store(place: Path) -> Store:
    """The store of a folder of runs, or of a run.

    Raises:
        RecipeError: there is none.
    """
    store = store_of(place)
    if store is None:
        raise RecipeError(f"{place} has no store.", fix="Name the folder of your runs, or a run in it.")
    return store


SIGNALS = ("capture", "kept", "signals")  # what holds teachers' signals


def listing(place: Path, only: Sequence[str] = ()) -> Usage:
    """Everything in the store, or what some kinds of stages left there, with the runs that refer to it."""
    return _only(read_usage(find_store(place)), only)


def _only(usage: Usage, stages: Sequence[str]) -> Usage:
    if not stages:
        return usage
    names = tuple(f"{start}{stage}-" for stage in stages for start in ("", BUILDING))
    return replace(
        usage, entries=tuple(entry for entry in usage.entries if entry.path.name.startswith(names))
    )


def listing_text(usage: Usage) -> str:
    """A line an entry, and the sums."""
    total = sum(entry.bytes for entry in usage.entries)
    free = sum(entry.bytes for entry in usage.free)
    count = "1 entry" if len(usage.entries) == 1 else f"{len(usage.entries)} entries"
    refer = f"no run refers to {size(free)} of it" if free else "runs refer to all of it"
    sums = f"{usage.store.root}: {count}, {size(total)}; {refer}"
    return "\n".join([*_table(usage.entries), sums, *_unreachable(usage)])


def listing_dict(usage: Usage) -> dict[str, Any]:
    """The same as JSON-safe values."""
    return {
        "store": str(usage.store.root),
        "entries": [_values(entry) for entry in usage.entries],
        "bytes": sum(entry.bytes for entry in usage.entries),
        "freeable_bytes": sum(entry.bytes for entry in usage.free),
        "unreachable": {str(place): str(run) for place, run in usage.unreachable.items()},
    }


def free(place: Path, *, really: bool, only: Sequence[str] = ()) -> Freed:
    """Delete what no run refers to, or what some kinds of stages left of it; without `really` only say what that is.

    Nothing is deleted while a run works with the store, or where a run may refer to it that cannot be looked
    into. An entry is renamed before it is deleted, so that a kill leaves it whole or gone.

    Raises:
        ArtifactError: nothing may be deleted now; says why.
    """
    store = find_store(place)
    with store.unused() as unused:
        usage = _only(read_usage(store), only)
        entries = usage.free if only else (*usage.free, *map(_unpacking, unpacking.leftovers()))
        why_not = " ".join(_unreachable(usage))
        if not unused:
            why_not = "a run works with this store; wait until it has ended."
        if not really:
            return Freed(usage, entries, why_not, None)
        if why_not:
            raise ArtifactError(f"nothing is freed: {why_not}", fix="Then run the same command again.")
        return Freed(usage, entries, "", sum(disk.free(entry.path) for entry in entries))


def _unpacking(path: Path) -> Entry:
    return Entry(path, "leftover", "half unpacked model", disk.size_of(path), path.lstat().st_mtime)


def _unreachable(usage: Usage) -> list[str]:
    return [
        f"{place} names the run {run}, which is not there, so what it refers to is not known. Bring it back, "
        f"or delete {place} if it is gone for good."
        for place, run in usage.unreachable.items()
    ]


def _table(entries: Sequence[Entry]) -> list[str]:
    """One line an entry: name, what it is, size, age and the runs that refer to it."""
    rows = [
        (entry.path.name, entry.what, size(entry.bytes), _age(entry.made), _users(entry)) for entry in entries
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    return ["  ".join([*map(str.ljust, row, widths), row[4]]).rstrip() for row in rows]


def _users(entry: Entry) -> str:
    users = ", ".join(entry.runs) or "no run"
    return f"{users} (a process works on it)" if entry.held else users


def _age(made: float) -> str:
    seconds = max(0.0, time.time() - made)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // length)) > 0:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "now"


def _values(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.path.name,
        "path": str(entry.path),
        "kind": entry.kind,
        "what": entry.what,
        "bytes": entry.bytes,
        "made": f"{datetime.fromtimestamp(entry.made, UTC):%Y-%m-%dT%H:%M:%SZ}",
        "runs": list(entry.runs),
        "held": entry.held,
    }
