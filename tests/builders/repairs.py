"""Damaged captures and their repair."""

from __future__ import annotations

import pytest

from builders.captures import job, rows
from potstill.cache.blocks import shard_name
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.stages import _capture
from potstill.stages._context import State
from potstill.stages._entries import Entries
from potstill.teachers.cached import SIGNALS

ROWS = rows(48)


def repaired(folder, source=None, examples=ROWS, **how):
    """What `repaired` gives for the same rows, from a recipe's stage on."""
    one = job(folder, examples, source, **{"batch_tokens": 16, "shard_bytes": 8192} | how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_capture, "job_of", lambda *given: one)
        return _capture.repaired(one.spec, State(), one.context)


def flip(file, offset: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 16
    file.write_bytes(raw)


def tear(folder, rows, blocks: int) -> set[str]:
    """Damage so many blocks of signals; the rows that they held."""
    cache = Cache.open(folder / SIGNALS)
    listed = cache._index.blocks
    chosen = range(0, len(listed), -(-len(listed) // blocks))
    for number in chosen:
        end = int(listed["offset"][number]) + int(listed["bytes"][number])
        flip(folder / SIGNALS / shard_name(int(listed["shard"][number])), end - 1)
    places = {row.id: cache._index.find(key_of(row.input_ids, row.scored)) for row in rows}
    lost = {name for name, place in places.items() if cache._index.entries["block"][place] in chosen}
    assert 0 < len(lost) < len(rows)
    return lost


def watched_rows(patch) -> list[str]:
    """The rows about which the teacher is asked from now on."""
    asked, said = list[str](), Entries._said

    def watching(self, rows):
        asked.extend(row.id for row in rows)
        return said(self, rows)

    patch.setattr(Entries, "_said", watching)
    return asked
