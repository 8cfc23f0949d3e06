"""How a kind of signal becomes bytes and comes back, one file a kind. A file defines

- `FIELDS`, the names of an entry's byte strings, in their order on disk;
- `encode(signal, setting, key, vocabulary) -> fields`, of one example, a signal of its scored positions;
- `decode(entries, setting, context) -> signal`, of several examples joined;
- `check(setting) -> setting`, which completes a setting with its defaults and refuses what it does not know.

The bytes of every field are described in docs/cache-format.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.cache.blocks import Fields
from potstill.errors import SignalError
from potstill.signals.signal import Signal
from potstill.types import Head


@dataclass(frozen=True, slots=True)
class Entry:
    """One example's fields, and how many positions they describe."""

    tokens: int
    fields: Fields


@dataclass(frozen=True)
class Context:
    """What a codec reads besides an entry."""

    vocabulary: int
    head: Head | None = None


class Codec(Protocol):
    """A file of this folder."""

    FIELDS: tuple[str, ...]

    def check(self, setting: Mapping[str, Any]) -> dict[str, Any]: ...

    def encode(self, signal: Any, setting: Mapping[str, Any], key: bytes, vocabulary: int) -> Fields: ...

    def decode(self, entries: Sequence[Entry], setting: Mapping[str, Any], context: Context) -> Signal: ...


def names() -> tuple[str, ...]:
    """Every kind that can be cached."""
    return tuple(sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py")))


def codec(kind: str) -> Codec:
    """The codec of a kind.

    Raises:
        SignalError: there is none.
    """
    if kind not in names():
        raise SignalError(
            f"no signal of the kind {kind!r} is cached.", fix=f"Use one of: {', '.join(names())}."
        )
    module: Any = importlib.import_module(f"{__name__}.{kind}")
    return module


def completed(kind: str, setting: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A setting with its defaults.

    Raises:
        SignalError: names an option that the kind does not have.
    """
    if unknown := sorted(setting.keys() - defaults.keys()):
        raise SignalError(
            f"a cache of the kind {kind} has no setting {unknown[0]!r}.",
            fix=f"It has: {', '.join(sorted(defaults))}.",
        )
    return {**defaults, **setting}
