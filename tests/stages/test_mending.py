"""A damaged capture is made whole: the rows of damaged blocks alone are asked about again, and the bytes are the old ones."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace

import pytest

from builders import captures, jobs
from builders.captures import captured, hashes, job, rows
from builders.hooks import watched
from builders.tiny import tiny_model
from potstill.cache.reader import Cache
from potstill.errors import CacheDamaged, Interrupted
from potstill.stages import _capture, _mending
from potstill.stages._context import State
from potstill.teachers.cached import SIGNALS

ROWS = rows(48)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed capture of files with several blocks each."""
    place = tmp_path_factory.mktemp("calm")
    return captured(place, ROWS, batch_tokens=16, shard_bytes=8192).path


def repaired(folder, source=None, **how):
    """What `repaired` gives for the same rows, from a recipe's stage on."""
    one = job(folder, ROWS, source, batch_tokens=16, shard_bytes=8192, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_capture, "job_of", lambda *given: one)
        return _capture.repaired(one.spec, State(), one.context)


@pytest.fixture
def copy(tmp_path, calm):
    """A store that holds a copy of it."""
    (tmp_path / "store").mkdir()
    return shutil.copytree(calm, tmp_path / "store" / calm.name)


def flip(file, offset: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 16
    file.write_bytes(raw)


def test_a_cache_without_damage_is_left_as_it_is(tmp_path, calm, copy):
    source = captures.teacher()
    with watched(source.loaded().model) as passes:
        artifact, damage = repaired(tmp_path, source)
    assert (damage, len(passes)) == ([], 0)
    assert hashes(artifact.path) == hashes(calm)


def test_the_rows_of_a_damaged_block_alone_are_asked_about_again(tmp_path, calm, copy):
    cache = Cache.open(copy / SIGNALS)
    blocks = cache._index.blocks
    (chosen,) = [b for b in blocks if b["number"] == 1][:1]
    (file,) = (copy / SIGNALS).glob(f"shard-{int(chosen['shard']) >> 16:05d}-*.bin")
    flip(file, int(chosen["offset"]) + int(chosen["bytes"]) - 3)
    keys = [*cache.keys()]
    with pytest.raises(CacheDamaged, match=r"block 1 of shard-.*--repair") as caught:
        Cache.open(copy / SIGNALS).batch(keys)
    assert caught.value.exit_code == 4
    source = captures.teacher()
    with watched(source.loaded().model) as passes:
        artifact, damage = repaired(tmp_path, source)
    assert len(damage) == 1
    assert "block 1 of shard-" in damage[0]
    # Rows that share a prompt are read behind it, once.
    assert 0 < sum(rows for rows, _ in passes) <= int(chosen["entries"])
    assert hashes(artifact.path) == hashes(calm)
    assert not list((tmp_path / "store").glob(".*aside*"))


def test_whatever_is_damaged_the_bytes_come_back(tmp_path, calm, copy):
    """Flipped bits and cuts of any file of the caches, several at once."""
    draw = random.Random(7)
    files = sorted(file.relative_to(calm) for place in _mending.PLACES for file in (calm / place).iterdir())
    for number in range(12):
        for name in draw.sample(files, 1 + number % 3):
            file = copy / name
            whole = file.read_bytes()
            at = draw.randrange(len(whole))
            if number % 3 == 2:
                file.write_bytes(whole[:at])
            else:
                flip(file, at)
        artifact, damage = repaired(tmp_path)
        assert damage
        assert hashes(artifact.path) == hashes(calm), number


def test_a_repair_that_is_stopped_goes_on(tmp_path, calm, copy):
    for file in (copy / SIGNALS).glob("shard-*.bin"):
        flip(file, file.stat().st_size // 2)
    source = captures.teacher()
    with watched(source.loaded().model) as passes, pytest.raises(Interrupted):
        repaired(tmp_path, source, stop=lambda: 15 if len(passes) > 2 else 0)
    artifact, _ = repaired(tmp_path, source)
    assert hashes(artifact.path) == hashes(calm)


def test_vectors_are_mended_as_all_other_kinds(tmp_path):
    """The head of the student is read again, not the teacher's."""
    student = jobs.student(tmp_path / "student", tiny_model(seed=2))
    one = replace(
        job(tmp_path, ROWS[:12], kinds=("kl_vector",), signal="kl_vector"),
        state=State(student=student, untrained=student),
    )
    made = _capture.made(one)
    whole = hashes(made.path)
    for file in (made.path / SIGNALS).glob("shard-*.bin"):
        flip(file, file.stat().st_size - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_capture, "job_of", lambda *given: one)
        artifact, damage = _capture.repaired(one.spec, one.state, one.context)
    assert damage
    assert hashes(artifact.path) == whole
