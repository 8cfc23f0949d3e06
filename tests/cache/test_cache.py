"""A cache as a whole: what is written comes back, in any order, from any block."""

from __future__ import annotations

import random

import pytest
import torch

from potstill.cache.collate import Collator
from potstill.cache.header import Header
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.errors import ArtifactError, CacheMiss
from potstill.signals.hidden import Hidden
from potstill.types import Head

VOCABULARY, WIDTH = 50, 40
HEADER = Header("hidden", {"format": "fp16"}, "teacher-1", VOCABULARY, {"template": "chatml"})


def head() -> Head:
    return Head(torch.randn(VOCABULARY + 6, WIDTH, generator=torch.Generator().manual_seed(7)), VOCABULARY)


def examples(count: int = 12) -> list[tuple[list[int], list[bool]]]:
    draw = random.Random(0)
    rows = []
    for number in range(count):
        length = draw.randrange(2, 30)
        ids = [number, *(draw.randrange(VOCABULARY) for _ in range(length))]
        rows.append((ids, [False, *(draw.random() < 0.7 for _ in range(length))]))
    return rows


def hidden_of(row: tuple[list[int], list[bool]]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(row[0][0])
    return torch.randn(sum(row[1]), WIDTH, generator=generator).half().float()


def write(folder, rows, *, header: Header = HEADER, block: int = 3, finish: bool = True, **options) -> Writer:
    writer = Writer(folder, header, **options)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        writer.add_block([(key_of(*row), Hidden(hidden_of(row), head())) for row in part])
    if finish:
        writer.finish()
    return writer


@pytest.mark.parametrize("finish", [True, False])
def test_every_example_comes_back_in_any_order(tmp_path, finish):
    rows = examples()
    write(tmp_path / "cache", rows, finish=finish, shard_bytes=4000).close()
    cache = Cache.open(tmp_path / "cache")
    assert (len(cache), cache.complete) == (12, finish)
    assert cache.stats()["shards"] > 1
    shuffled = rows[::-1] + rows[:3]
    joined = cache.batch([key_of(*row) for row in shuffled])
    torch.testing.assert_close(joined.hidden, torch.cat([hidden_of(row) for row in shuffled]), rtol=0, atol=0)
    torch.testing.assert_close(cache.signal(*rows[5]).hidden, hidden_of(rows[5]), rtol=0, atol=0)
    torch.testing.assert_close(joined.head.weight, head().weight[:VOCABULARY], rtol=0, atol=0)
    assert cache.verify() == []


def test_a_change_of_ids_or_scored_positions_is_a_miss_that_names_the_cause(tmp_path):
    rows = examples()
    write(tmp_path / "cache", rows)
    cache = Cache.open(tmp_path / "cache")
    ids, scored = rows[0]
    for other in ((ids[:-1], scored[:-1]), (ids, [not mark for mark in scored]), ([49, *ids[1:]], scored)):
        with pytest.raises(CacheMiss, match=r"teacher-1 with template chatml.*template, tokenizer"):
            cache.signal(*other)
    with pytest.raises(CacheMiss, match="teacher-1, not of teacher-2"):
        cache.require_teacher("teacher-2")
    assert cache.coverage([key_of(*row) for row in [*rows, (ids, scored), ([1], [True])]]).share == 12 / 13


def test_ids_alone_mean_all_tokens_but_the_first(tmp_path):
    """A miss says that this was assumed; the reader of a row with a prompt passes what is scored."""
    text, chat = ([3, 4, 5, 6], [False, True, True, True]), ([7, 8, 9], [False, False, True])
    write(tmp_path / "cache", [text, chat])
    cache = Cache.open(tmp_path / "cache")
    assert torch.equal(cache.signal(text[0]).hidden, cache.signal(*text).hidden)
    with pytest.raises(CacheMiss, match=r"2 scored positions \(all but the first: pass scored for others\)"):
        cache.signal(chat[0])
    for rows in ([{"input_ids": text[0]}], [{"input_ids": text[0], "scored": None}]):
        batch, signal = Collator(cache)(rows)
        assert batch.count == signal.rows == 3


def test_another_header_is_refused_with_the_field_that_differs(tmp_path):
    write(tmp_path / "cache", examples())
    other = Header("hidden", {"format": "fp16"}, "teacher-2", VOCABULARY, {"template": "chatml"})
    with pytest.raises(ArtifactError, match="teacher: 'teacher-1', not 'teacher-2'"):
        Writer(tmp_path / "cache", other)
