"""How a cache is read: ahead of training, from afar, in little memory, without transformers, by another program."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from itertools import pairwise

import fsspec
import numpy as np
import pytest
import torch

from potstill.cache import files
from potstill.cache.collate import Collator
from potstill.cache.header import FORMAT, MAJOR, Header
from potstill.cache.keys import key_of
from potstill.cache.prefetch import ahead
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.errors import ArtifactError, CacheMiss
from potstill.signals.dense import Dense
from potstill.signals.hidden import Hidden
from potstill.types import Head

VOCABULARY = 60
ROWS = [([n, 5, 6, 7, 8][: 3 + n % 3], [False, True, n % 2 == 0, True, True][: 3 + n % 3]) for n in range(20)]
SETTING = {"threshold": 0.01, "most": 9, "bits": 7, "temperatures": (2.0,)}


def logits_of(row) -> torch.Tensor:
    return 2 * torch.randn(sum(row[1]), VOCABULARY, generator=torch.Generator().manual_seed(row[0][0]))


def write(folder, kind: str = "topk", setting=SETTING) -> None:
    with Writer(folder, Header(kind, setting, "teacher", VOCABULARY), shard_bytes=600) as writer:
        for start in range(0, len(ROWS), 4):
            writer.add_block([(key_of(*row), Dense(logits_of(row))) for row in ROWS[start : start + 4]])
        writer.finish()


def test_batches_are_read_ahead_in_order_and_errors_arrive_where_they_are_due(tmp_path):
    write(tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    batches = [[key_of(*row) for row in ROWS[i : i + 3]] for i in range(0, 18, 3)]
    for keys, signal in zip(batches, ahead(cache, batches), strict=True):
        assert torch.equal(signal.whole().ids, cache.batch(keys).whole().ids)
    reading = ahead(cache, [batches[0], [b"\0" * 16]])
    next(reading)
    with pytest.raises(CacheMiss):
        next(reading)
    stopped = ahead(cache, batches)
    next(stopped)
    stopped.close()  # the thread ends with it


def test_a_url_is_read_in_ranges(tmp_path):
    """fsspec's memory stands for S3 or HTTP: every example, one request a block, damage included."""
    write(tmp_path / "cache")
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path / "cache"), "/caches/one", recursive=True)
    local, remote = Cache.open(tmp_path / "cache"), Cache.open("memory://caches/one")
    for row in reversed(ROWS):
        assert torch.equal(remote.signal(*row).whole().lp, local.signal(*row).whole().lp)
    assert remote.verify() == []
    with pytest.raises(ArtifactError, match=r"header\.json is missing"):
        Cache.open("memory://caches")


def test_the_collator_gives_a_batch_and_its_signal_in_one_order(tmp_path):
    write(tmp_path / "cache")
    rows = [{"input_ids": ids, "scored": scored} for ids, scored in (ROWS[7], ROWS[2], ROWS[11])]
    collator = pickle.loads(pickle.dumps(Collator(Cache.open(tmp_path / "cache"))))  # as a worker gets it
    batch, signal = collator(rows)
    assert batch.count == signal.rows
    likeliest = torch.cat([logits_of(row).argmax(-1) for row in (ROWS[7], ROWS[2], ROWS[11])])
    whole = signal.whole()
    assert torch.equal(whole.ids.gather(1, whole.lp.argmax(-1, keepdim=True)).flatten(), likeliest)


def test_the_cache_opens_without_transformers(tmp_path):
    write(tmp_path / "cache")
    code = (
        "import sys; sys.modules['transformers'] = None; sys.modules['datasets'] = None\n"
        "from potstill.cache.collate import Collator\n"
        "from potstill.cache.reader import Cache\n"
        "import potstill.cache.fidelity, potstill.cache.prefetch\n"
        f"print(Cache.open({str(tmp_path / 'cache')!r}).signal({ROWS[0][0]}, {ROWS[0][1]}).rows)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.stdout.strip() == str(sum(ROWS[0][1])), done.stderr


def test_a_batch_takes_as_much_memory_as_it_takes_disk(tmp_path):
    write(tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    packed = cache.batch([key_of(*row) for row in ROWS])
    assert packed.bytes <= cache.stats()["bytes"]


def test_memory_stays_flat_while_the_cache_grows(tmp_path, monkeypatch):
    """What was read is given back to the kernel, however much there is."""
    monkeypatch.setattr(files, "RESIDENT", 2**20)
    head = Head(torch.zeros(8, 512), 8)
    keys = [n.to_bytes(16, "big") for n in range(24)]
    with Writer(tmp_path / "cache", Header("hidden", {}, "teacher", 8), shard_bytes=8 * 2**20) as writer:
        for key in keys:
            writer.add_block([(key, Hidden(torch.ones(1024, 512), head))])
        writer.finish()
    cache = Cache.open(tmp_path / "cache")
    assert cache.stats()["bytes"] > 24 * 2**20
    cache.batch(keys[:2])
    before = mapped()
    for key in keys:
        cache.batch([key])
    assert mapped() - before < 6 * 2**20


def mapped() -> int:
    """Resident bytes of files, which the heap's own ups and downs do not touch."""
    with open("/proc/self/statm") as handle:
        return int(handle.read().split()[2]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("version", "read"), [([MAJOR + 1, 0], False), ([MAJOR, 7], True), ([MAJOR - 1, 3], True)]
)
def test_one_major_back_and_any_minor_version_is_read(version, read):
    header = Header("topk", {}, "teacher", 9, version=tuple(version))
    if read:
        assert Header.from_json(header.to_json().encode(), "header.json") == header
    else:
        with pytest.raises(
            ArtifactError, match=rf"version {MAJOR + 1}\.0.*reads {MAJOR - 1}\.x and {MAJOR}\.x"
        ):
            Header.from_json(header.to_json().encode(), "header.json")


@pytest.mark.parametrize("vocabulary", [2**17, 2**18, 2**20])
def test_large_vocabularies_come_back(tmp_path, vocabulary):
    """Exactly 2^17 and 2^18 too: the last id is itself, not 0."""
    logits = torch.full((3, vocabulary), -20.0)
    places = [[0, vocabulary - 1], [65_535, vocabulary // 2], [131_071, 70_000]]
    for row, ids in enumerate(places):
        logits[row, ids] = torch.tensor([1.0, 2.0])
    for kind in ("topk", "sampled", "topk_sampled"):
        with Writer(tmp_path / kind, Header(kind, {}, "teacher", vocabulary)) as writer:
            writer.add_block([(key_of([1, 2, 3], [True] * 3), Dense(logits))])
            writer.finish()
        whole = Cache.open(tmp_path / kind).signal([1, 2, 3], [True] * 3).whole()
        ids = whole.checked().ids
        assert [set(row[:2]) for row in ids.tolist()] == [set(row) for row in places]


# ── another program ───────────────────────────────────────────────────────────────────────────────


def read_topk_from_the_page_alone(folder, key: bytes, vocabulary: int) -> list[dict[int, float]]:
    """A reader of `topk` written from docs/cache-format.md, with numpy, struct and zlib alone."""
    header = json.loads((folder / "header.json").read_bytes())
    assert header["format"] == FORMAT
    setting = header["setting"]
    index = (folder / "index.bin").read_bytes()
    assert zlib.crc32(index[:-4]) == struct.unpack("<I", index[-4:])[0]
    magic, _, _, _, blocks, entries, _ = struct.unpack_from("<8sHHIQQQ", index)
    assert magic == b"PSINDEX\0"
    for number in range(entries):
        at = 40 + 32 * blocks + 40 * number
        name, offset, size, tokens, block, _ = struct.unpack_from("<16sQIIII", index, at)
        if name == key:
            break
    else:
        raise KeyError(key)
    shard, _, start, length, _, _ = struct.unpack_from("<IIQQII", index, 40 + 32 * block)
    data = (folder / f"shard-{shard >> 16:05d}-{shard & 65535:05d}.bin").read_bytes()
    raw = data[start : start + length]
    magic, _, count, _, payload, of_directory, of_payload, _, of_header = struct.unpack_from(
        "<4sIIIQIIII", raw
    )
    assert (magic, zlib.crc32(raw[:36])) == (b"PSBK", of_header)
    assert zlib.crc32(raw[40 : 40 + 24 * count]) == of_directory
    assert zlib.crc32(raw[40 + 24 * count :]) == of_payload
    assert len(raw) == 40 + 24 * count + payload
    entry = data[offset : offset + size]
    lengths = struct.unpack_from("<6I", entry)
    ends = np.cumsum([24, *lengths])
    counts, unary, plain, step, values, tails = (entry[a:b] for a, b in pairwise(ends))
    step = struct.unpack("<f", step)[0]

    def bit(stream: bytes, place: int) -> int:
        return stream[place // 8] >> (place % 8) & 1

    def number_at(stream: bytes, place: int, width: int) -> int:
        return sum(bit(stream, place + i) << i for i in range(width))

    order, plain = plain[0], plain[1:]
    codes = values[1:] if values[0] == 0 else zlib.decompress(values[1:], -15)
    positions, place, low, value = [], 0, 0, 0
    tail_of = np.frombuffer(tails, "<u2").reshape(tokens, 1 + len(setting["temperatures"]))
    for token in range(tokens):
        found, last = {}, -1
        for _ in range(counts[token]):
            width = order
            while not bit(unary, place):
                place, width = place + 1, width + 1
            last += (1 << width) + number_at(plain, low, width) - (1 << order) + 1
            code = (
                number_at(codes, value * setting["bits"], setting["bits"]) if values[0] == 0 else codes[value]
            )
            found[last] = -code * step
            place, low, value = place + 1, low + width, value + 1
        code = int(tail_of[token, 0])
        tail = 0.0 if code == 65535 else np.exp(-code / 4000)
        shift = np.log((1 - tail) / sum(np.exp(lp) for lp in found.values()))
        positions.append({i: lp + shift for i, lp in found.items()})
    return positions


def test_another_program_reads_the_same_from_the_documented_format(tmp_path):
    write(tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    for row in ROWS[:6]:
        whole = cache.signal(*row).whole()
        theirs = read_topk_from_the_page_alone(tmp_path / "cache", key_of(*row), VOCABULARY)
        for position, (ids, lp) in enumerate(zip(whole.ids.tolist(), whole.lp.tolist(), strict=True)):
            ours = {i: value for i, value in zip(ids, lp, strict=True) if i >= 0}
            assert theirs[position] == pytest.approx(ours, abs=1e-5)


def test_a_process_with_another_working_directory_opens_the_same_files(tmp_path, monkeypatch):
    write(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(Cache.open("cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert key_of(*ROWS[0]) in pickle.loads(pickled)
