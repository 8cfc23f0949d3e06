"""What a cache says of itself: its kind, its codec's setting, its teacher, its version."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from potstill.errors import ArtifactError, CacheDamaged

NAME = "header.json"
FORMAT = "potstill-cache"
MAJOR, MINOR = 1, 0


@dataclass(frozen=True)
class Header:
    """The description of a cache; it is written before the first block and never changed.

    Args:
        kind: the kind of signal, a file of `potstill.cache.codecs`.
        setting: of its codec, such as {"format": "fp16"}.
        teacher: the fingerprint of the teacher whose signals these are.
        vocabulary: ids that the teacher's head knows.
        facts: whatever a reader may like to know: names, template, measured fidelity.
        version: (major, minor) of the format.
    """

    kind: str
    setting: Mapping[str, Any]
    teacher: str
    vocabulary: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    version: tuple[int, int] = (MAJOR, MINOR)

    def to_json(self) -> str:
        """The header as its file holds it; its last line but one is the crc32 of all bytes before that line."""
        value = {"format": FORMAT, **asdict(self), "version": list(self.version)}
        text = json.dumps(value, indent=2, sort_keys=True).removesuffix("\n}")
        return text + _end(text.encode())

    @staticmethod
    def from_json(content: bytes, path: str) -> Header:
        """Read a header. Fields that it has beyond those known here, of a later minor version, are left out.

        Raises:
            CacheDamaged: it is not as it was written.
            ArtifactError: it is of another format, or of a version that is not read here.
        """
        body = content[: content.rfind(b',\n  "crc32": ')]
        if content[len(body) :] != _end(body).encode():
            raise CacheDamaged(f"{path} is not as it was written: its checksum differs.", block="header")
        value = json.loads(content)
        version = tuple(value.pop("version"))
        require_version(value["format"], version, path)
        known = {name: value[name] for name in ("kind", "setting", "teacher", "vocabulary", "facts")}
        return Header(**known, version=version)

    def differences(self, other: Header) -> list[str]:
        """The fields in which another header differs, as "name: this, not that"."""
        mine, others = json.loads(self.to_json()), json.loads(other.to_json())
        return [
            f"{name}: {mine[name]!r}, not {others[name]!r}"
            for name in sorted(mine)
            if name != "crc32" and mine[name] != others[name]
        ]


def require_version(name: str, version: tuple[int, ...], path: str) -> None:
    """Refuse another format, and a version that is newer than this one or more than one major older.

    Raises:
        ArtifactError: names both versions.
    """
    if name != FORMAT or len(version) != 2:
        raise ArtifactError(f"{path} belongs to the format {name!r}, not {FORMAT!r}.")
    if not MAJOR - 1 <= version[0] <= MAJOR:
        raise ArtifactError(
            f"{path} has version {version[0]}.{version[1]} of the cache format; this potstill reads "
            f"{MAJOR - 1}.x and {MAJOR}.x.",
            fix="Capture again, or read it with the potstill that wrote it.",
        )


def _end(body: bytes) -> str:
    return f',\n  "crc32": {zlib.crc32(body)}\n}}\n'
