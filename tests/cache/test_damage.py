"""Damage, kills and full disks: every damaged byte is noticed, and nothing whole is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from potstill.cache import blocks, codecs
from potstill.cache import writer as writers
from potstill.cache.header import Header
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.cache.vectors import vectors_of
from potstill.cache.writer import Writer
from potstill.errors import ArtifactError, CacheDamaged, MachineError, SignalError
from potstill.signals.dense import Dense
from potstill.signals.given import Given
from potstill.signals.hidden import Hidden
from potstill.signals.vector import KlVector
from potstill.types import Head

VOCABULARY = 40
ROWS = [([n, n + 1, 3, 4], [False, True, True, n % 2 == 0]) for n in range(24)]
BLOCK, SHARD = 3, 700


def signal_of(kind: str, row) -> Dense | Hidden | Given | KlVector:
    generator = torch.Generator().manual_seed(row[0][0])
    count = sum(row[1])
    if kind == "hidden":
        head = Head(torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(1)), VOCABULARY)
        return Hidden(torch.randn(count, 8, generator=generator), head)
    if kind == "kl_vector":
        frozen = Head(torch.randn(VOCABULARY, 8, generator=torch.Generator().manual_seed(1)), VOCABULARY)
        return vectors_of(Dense(2 * torch.randn(count, VOCABULARY, generator=generator)), frozen)
    if kind == "token":
        return Given(-torch.rand(count, generator=generator))
    return Dense(2 * torch.randn(count, VOCABULARY, generator=generator))


def block_of(number: int, kind: str = "topk"):
    return [(key_of(*row), signal_of(kind, row)) for row in ROWS[BLOCK * number : BLOCK * (number + 1)]]


def writer(folder: Path, kind: str = "topk", **options) -> Writer:
    return Writer(folder, Header(kind, {}, "teacher", VOCABULARY), shard_bytes=SHARD, **options)


def write(folder: Path, kind: str = "topk") -> None:
    with writer(folder, kind) as cache:
        for number in range(len(ROWS) // BLOCK):
            cache.add_block(block_of(number, kind))
        cache.finish()


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def finish(folder: Path) -> None:
    with writer(folder) as cache:
        for number in range(len(ROWS) // BLOCK):
            block = block_of(number)
            held = [key in cache for key, _ in block]
            assert all(held) or not any(held)
            cache.add_block(block)
        cache.finish()


def read_all(folder: Path) -> None:
    cache = Cache.open(folder)
    for row in ROWS:
        cache.signal(*row)


def expected_block(folder: Path, cache: Cache, name: str, offset: int) -> str:
    """What an error must name for damage at this byte of this file."""
    if not name.startswith("shard-"):
        return {"header.json": "header", "head.sha256": "head.safetensors"}.get(name, name)
    if offset < blocks.SHARD.size:
        return name
    for block in cache._index.blocks:
        if blocks.shard_name(int(block["shard"])) == name and offset < block["offset"] + block["bytes"]:
            return blocks.block_name(int(block["shard"]), int(block["number"]))
    raise AssertionError(offset)


def damage_and_read(folder: Path, times: int) -> None:
    cache, draw = Cache.open(folder), random.Random(5)
    files = sorted(content(folder))
    for number in range(times):
        name = draw.choice(files)
        whole = (folder / name).read_bytes()
        offset = draw.randrange(len(whole))
        if number % 5 == 4:
            broken = whole[:offset]
        else:
            broken = bytearray(whole)
            broken[offset] ^= 1 << draw.randrange(8)
        (folder / name).write_bytes(broken)
        with pytest.raises(CacheDamaged) as caught:
            read_all(folder)
        assert caught.value.exit_code == 4
        # What is cut off in the middle of a shard is missed in the block that stood there.
        wanted = expected_block(folder, cache, name, offset)
        assert caught.value.block == wanted, (name, offset)
        assert wanted == "header" or wanted in str(caught.value)
        (folder / name).write_bytes(whole)
    read_all(folder)


@pytest.mark.parametrize("kind", ["topk", "hidden", "kl_vector"])
def test_every_flipped_bit_and_truncation_is_noticed_and_its_block_named(tmp_path, kind):
    write(tmp_path / "cache", kind)
    damage_and_read(tmp_path / "cache", 40)


@pytest.mark.prove
@pytest.mark.parametrize("kind", codecs.names())
def test_a_thousand_flipped_bits_and_truncations_are_noticed(tmp_path, kind):
    write(tmp_path / "cache", kind)
    damage_and_read(tmp_path / "cache", 1000)


def test_verify_lists_every_damaged_block(tmp_path):
    write(tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    assert cache.verify() == []
    chosen = cache._index.blocks[[1, 4]]
    for block in chosen:
        file = tmp_path / "cache" / blocks.shard_name(int(block["shard"]))
        raw = bytearray(file.read_bytes())
        raw[int(block["offset"] + block["bytes"]) - 1] ^= 4
        file.write_bytes(raw)
    damages = Cache.open(tmp_path / "cache").verify()
    names = [blocks.block_name(int(block["shard"]), int(block["number"])) for block in chosen]
    assert len(damages) == 2
    assert all(name in text for name, text in zip(names, damages, strict=True))


# ── interruptions ─────────────────────────────────────────────────────────────────────────────────


def test_a_writer_goes_on_from_any_byte_at_which_it_was_killed(tmp_path):
    """Whatever half of the last block has reached the disk is cut off; the finished files are the same bytes."""
    write(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    last = max(name for name in whole if name.startswith("shard-"))
    draw = random.Random(3)
    for name in [*sorted(name for name in whole if name.startswith("shard-"))[:2], last]:
        for cut in {0, 1, 15, 16, 17, *(draw.randrange(len(whole[name])) for _ in range(4))}:
            place = tmp_path / "cut"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            (place / "header.json").write_bytes(whole["header.json"])
            for earlier in (other for other in whole if other.startswith("shard-") and other < name):
                (place / earlier).write_bytes(whole[earlier])
            (place / name).write_bytes(whole[name][:cut])
            finish(place)
            assert content(place) == whole, (name, cut)


def killed_at_random(folder: Path, draw: random.Random) -> None:
    """Start a process that writes the cache, and kill it somewhere in the block after a random one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with writer(folder) as cache:
                for number in range(len(ROWS) // BLOCK):
                    cache.add_block(block_of(number))
                    os.write(writing, b".")
        finally:
            os._exit(0)
    os.close(writing)
    for _ in range(draw.randrange(1, 4)):
        os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)


def kills(tmp_path: Path, times: int) -> None:
    write(tmp_path / "whole")
    draw = random.Random(11)
    for number in range(times):
        place = tmp_path / f"killed-{number}"
        killed_at_random(place, draw)
        Cache.open(place)  # a partial cache is readable at once
        killed_at_random(place, draw)
        finish(place)
        assert content(place) == content(tmp_path / "whole")


def test_a_cache_whose_writers_were_killed_is_the_same_bytes(tmp_path):
    kills(tmp_path, 3)


@pytest.mark.prove
def test_a_cache_whose_writers_were_killed_fifty_times_is_the_same_bytes(tmp_path):
    kills(tmp_path, 25)


def test_a_full_disk_keeps_every_whole_block_and_says_what_to_do(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    cache = writer(tmp_path / "cache")
    cache.add_block(block_of(0))
    before = content(tmp_path / "cache")

    def half(file, data):
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers, "_write_all", half)
        with pytest.raises(MachineError, match=r"no room.*whole blocks are kept"):
            cache.add_block(block_of(1))
        assert content(tmp_path / "cache") == before
    for number in range(1, len(ROWS) // BLOCK):
        cache.add_block(block_of(number))
    cache.finish()
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


def test_a_cache_grows_again_after_it_was_finished(tmp_path):
    with writer(tmp_path / "cache") as cache:
        for number in range(4):
            cache.add_block(block_of(number))
        cache.finish()
    finish(tmp_path / "cache")
    write(tmp_path / "whole")
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


def test_parallel_writers_share_a_folder_and_one_finishes_it(tmp_path):
    parts = [writer(tmp_path / "cache", part=part) for part in range(2)]
    for number in range(len(ROWS) // BLOCK):
        parts[number % 2].add_block(block_of(number))
    with pytest.raises(ArtifactError, match="another process writes part 1"):
        writer(tmp_path / "cache", part=1)
    parts[0].close()
    facts = parts[1].finish()
    assert facts["examples"] == len(ROWS)
    read_all(tmp_path / "cache")


def test_an_example_is_stored_once(tmp_path):
    with writer(tmp_path / "cache") as cache:
        cache.add_block(block_of(0) + block_of(0))
        cache.add_block(block_of(0))
        assert cache.finish()["examples"] == BLOCK
        assert len(cache.written) == BLOCK


def test_a_block_that_cannot_be_stored_leaves_the_cache_as_it_was(tmp_path):
    with writer(tmp_path / "cache") as cache:
        cache.add_block(block_of(0))
        before = content(tmp_path / "cache")
        with pytest.raises(SignalError):
            cache.add_block([(key_of([1], [True]), Given(torch.zeros(1)))])
        assert content(tmp_path / "cache") == before
