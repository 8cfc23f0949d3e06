"""A teacher that rounds otherwise than before makes blocks of other lengths; what is whole behind them stays."""

from __future__ import annotations

import random
import shutil

import pytest

from builders import captures
from builders.captures import captured, hashes
from builders.repairs import ROWS, flip, repaired, watched_rows
from potstill.cache.blocks import shard_name
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.store import disk
from potstill.store.artifacts import MANIFEST
from potstill.teachers.cached import SIGNALS

HOW = {"batch_tokens": 4, "shard_bytes": 2**20, "signal": "topk", "kinds": ("topk",), "max_kl_nats": 0.5}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A capture of likeliest ids, whose blocks are as long as what they hold."""
    return captured(tmp_path_factory.mktemp("calm"), ROWS, **HOW).path


def payloads(folder) -> dict[bytes, bytes]:
    """What is stored of each row."""
    cache = Cache.open(folder / SIGNALS)
    return {
        key: b"".join(bytes(part) for part in cache.batch([key]).entries[0].fields.values())
        for key in sorted(cache.keys())
    }


def spoil(folder, draw: random.Random, count: int) -> set[bytes]:
    """Flip a bit in the header or the content of some blocks; the keys that they held."""
    cache = Cache.open(folder / SIGNALS)
    listed, lost = cache._index.blocks, set[int]()
    for number in draw.sample(range(len(listed)), count):
        within = draw.choice([draw.randrange(40), int(listed["bytes"][number]) - 1])
        flip(
            folder / SIGNALS / shard_name(int(listed["shard"][number])),
            int(listed["offset"][number]) + within,
        )
        lost.add(number)
    places = {key_of(row.input_ids, row.scored) for row in ROWS}
    return {key for key in places if cache._index.entries["block"][cache._index.find(key)] in lost}


@pytest.mark.parametrize("count", [1, 3])
def test_what_stands_behind_a_block_of_another_length_is_kept(tmp_path, calm, count):
    draw = random.Random(count)
    for number in range(3):
        folder = tmp_path / str(number)
        copy = shutil.copytree(calm, folder / "store" / calm.name)
        lost = spoil(copy, draw, count)
        with pytest.MonkeyPatch.context() as patch:
            asked = watched_rows(patch)
            artifact, damage = repaired(folder, captures.teacher(seed=2), **HOW)
        assert damage
        assert {key_of(row.input_ids, row.scored) for row in ROWS if row.id in asked} == lost
        assert not Cache.open(artifact.path / SIGNALS).verify()
        before, after = payloads(calm), payloads(artifact.path)
        assert {key for key in before if before[key] != after[key]} == lost
        assert not [*artifact.path.rglob(".*")]


def test_what_is_kept_of_a_position_is_read_where_the_manifest_is_lost(tmp_path, calm):
    """Measured again by another rounding it could be another setting than that of the blocks."""
    copy = shutil.copytree(calm, tmp_path / "store" / calm.name)
    (copy / MANIFEST).write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        asked = watched_rows(patch)
        artifact, damage = repaired(tmp_path, captures.teacher(seed=2), **HOW)
    assert damage
    assert not asked
    assert hashes(artifact.path) == hashes(calm)


def test_a_kill_before_the_new_file_is_in_its_place_loses_nothing(tmp_path, calm):
    copy = shutil.copytree(calm, tmp_path / "store" / calm.name)
    lost = spoil(copy, random.Random(1), 1)
    place, killed = disk.move_into_place, list[str]()

    def kill(source, to):
        if to.name.startswith("shard-") and not killed:
            killed.append(to.name)
            raise KeyboardInterrupt
        place(source, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "move_into_place", kill)
        with pytest.raises(KeyboardInterrupt):
            repaired(tmp_path, captures.teacher(seed=2), **HOW)
        artifact, _ = repaired(tmp_path, captures.teacher(seed=2), **HOW)
    assert killed
    before, after = payloads(calm), payloads(artifact.path)
    assert {key for key in before if before[key] != after[key]} == lost
    assert not [*artifact.path.rglob(".*")]
