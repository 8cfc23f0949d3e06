"""Memory while a cache is written and read: that of a block, however many there are."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch

from potstill.cache import reader
from potstill.cache.header import Header
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.signals.topk import TopK
from potstill.signals.vector import KlVector

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
POSITIONS, K, VOCABULARY = 64, 64, 4096


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def signal_of(kind: str, number: int) -> KlVector | TopK:
    generator = torch.Generator().manual_seed(number)
    if kind == "kl_vector":
        values = torch.randn(POSITIONS, 256, generator=generator)
        return KlVector(values, torch.zeros(POSITIONS), torch.ones(POSITIONS), VOCABULARY)
    ids = torch.rand(POSITIONS, VOCABULARY, generator=generator).topk(K).indices
    return TopK(ids, torch.full((POSITIONS, K), 1.0 / (K + 1)).log())


def write(folder: Path, kind: str, rows: int) -> None:
    with Writer(folder, Header(kind, {}, "teacher", VOCABULARY), shard_bytes=2**23) as writer:
        for start in range(0, rows, 50):
            writer.add_block([(key(n), signal_of(kind, n)) for n in range(start, min(start + 50, rows))])
        writer.finish()


def peak_of(work) -> int:
    """The most bytes that a process of its own held while it did this."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(writing, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024).encode())
        finally:
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 100)
    os.close(reading)
    os.waitpid(child, 0)
    return int(said)


def read(folder: Path, rows: int) -> None:
    cache = Cache.open(folder)
    for number in range(rows):
        cache.batch([key(number)])


@pytest.mark.prove
def test_writing_and_reading_ten_times_as_much_takes_no_more_memory(tmp_path):
    """32 kB a row: 32 MB and 320 MB on disk; a reader gives pages back behind 32 MB."""
    few, many = 1_000, 10_000
    for rows in (few, many):
        write(tmp_path / f"warm {rows}", "kl_vector", 50)  # what libraries allocate once
    written = [peak_of(lambda n=n: write(tmp_path / str(n), "kl_vector", n)) for n in (few, many)]
    assert sum(file.stat().st_size for file in (tmp_path / str(many)).iterdir()) > 300e6
    assert written[1] - written[0] < 24 * 2**20
    was_read = [peak_of(lambda n=n: read(tmp_path / str(n), n)) for n in (few, many)]
    assert was_read[1] - was_read[0] < 24 * 2**20


@pytest.mark.prove
def test_ten_rows_of_two_thousand_are_read_without_the_others(tmp_path, monkeypatch):
    write(tmp_path / "cache", "topk", 2_000)
    with monkeypatch.context() as patch:
        patch.setattr(
            reader, "Mapped", lambda *given: pytest.fail("a file of blocks was opened with the cache")
        )
        cache = Cache.open(tmp_path / "cache")
    idle = peak_of(lambda: None)
    assert peak_of(lambda: [cache.batch([key(n)]).whole() for n in range(0, 2000, 200)]) - idle < 50e6
