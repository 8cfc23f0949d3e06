"""A damaged capture is made whole: the rows of damaged blocks alone are asked about again, and the bytes are the old ones."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest

from builders import captures, jobs
from builders.captures import captured, hashes, job
from builders.hooks import watched
from builders.repairs import ROWS, flip, repaired, tear, watched_rows
from builders.tiny import tiny_model
from potstill.cache import mending
from potstill.cache.reader import Cache
from potstill.cache.writer import Writer
from potstill.errors import CacheDamaged, Interrupted
from potstill.stages import _capture, _leaving, _mending
from potstill.stages._context import State
from potstill.stages._entries import Entries
from potstill.store import disk
from potstill.store.artifacts import Store
from potstill.teachers.cached import SIGNALS


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed capture of files with several blocks each."""
    place = tmp_path_factory.mktemp("calm")
    return captured(place, ROWS, batch_tokens=16, shard_bytes=8192).path


@pytest.fixture
def copy(tmp_path, calm):
    """A store that holds a copy of it."""
    (tmp_path / "store").mkdir()
    return shutil.copytree(calm, tmp_path / "store" / calm.name)


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


@pytest.fixture(scope="module")
def torn(tmp_path_factory, calm):
    """A store whose capture has two damaged blocks."""
    store = tmp_path_factory.mktemp("torn") / "store"
    tear(shutil.copytree(calm, store / calm.name), ROWS, blocks=2)
    return store


class Killed(BaseException):
    """In place of a kill: nothing in potstill answers to it."""


SEAMS = (
    (disk, "write_sealed"), (disk, "set_aside"), (disk, "_remove"), (Path, "rename"), (shutil, "copy2"),
    (mending, "_put"), (os, "truncate"), (Entries, "_said"), (Writer, "finish"), (_leaving, "finish"), (Store, "finish"),
)  # fmt: skip


def killed_at(patch, step: int) -> list[str]:
    """Let the process end before the step of this number, of all that change files or ask; the steps until then."""
    steps = list[str]()

    def counted(work, name):
        @wraps(work)
        def step_of(*given, **named):
            steps.append(name)
            if len(steps) == step:
                raise Killed(name)
            return work(*given, **named)

        return step_of

    for owner, name in SEAMS:
        patch.setattr(owner, name, counted(getattr(owner, name), name))
    return steps


def half_written(file, offset, content) -> None:
    os.pwrite(file.fileno(), content[: len(content) // 2], offset)
    raise Killed


def test_a_repair_that_is_killed_at_any_step_goes_on_and_loses_nothing(tmp_path):
    """Nobody is asked about a row that was whole, whichever step was the last, and about a lost one at most twice."""
    few, source, how = ROWS[:12], captures.teacher(), {"batch_tokens": 8, "shard_bytes": 4096}
    calm = captured(tmp_path / "calm", few, source, **how).path
    lost = tear(shutil.copytree(calm, tmp_path / "torn/store" / calm.name), few, blocks=1)
    places, whole = list[str](), False
    while not whole:
        folder = tmp_path / str(len(places))
        shutil.copytree(tmp_path / "torn", folder)
        with pytest.MonkeyPatch.context() as patch:
            asked = watched_rows(patch)
            with pytest.MonkeyPatch.context() as killing:
                steps = killed_at(killing, len(places) + 1)
                try:
                    artifact, damage = repaired(folder, source, examples=few, **how)
                    whole = True
                except Killed:
                    places.append(steps[len(places)])
                    artifact, damage = None, None
            if not whole:
                there = (folder / "store" / calm.name).is_dir() and damage_free(folder / "store" / calm.name)
                artifact, damage = repaired(folder, source, examples=few, **how)
                # What is whole in its place already has no damage to speak of.
                assert len(damage) == (0 if there else 1), (places[-1], len(places))
        assert hashes(artifact.path) == hashes(calm), places
        assert set(asked) <= lost, places
        assert max(map(asked.count, lost)) <= 2
        assert [path.name for path in (folder / "store").iterdir() if path.name != ".locks"] == [calm.name]
        shutil.rmtree(folder)
    assert {name for _, name in SEAMS} == {*places}


def damage_free(folder) -> bool:
    return not any(Cache.open(folder / place).verify() for place in _mending.PLACES)


def test_a_repair_that_is_killed_within_a_block_goes_on(tmp_path, calm, torn):
    shutil.copytree(torn, tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mending, "_put", half_written)
        with pytest.raises(Killed):
            repaired(tmp_path)
    artifact, damage = repaired(tmp_path)
    assert len(damage) == 2
    assert hashes(artifact.path) == hashes(calm)


def test_a_repair_that_a_signal_stopped_goes_on(tmp_path, calm, torn):
    shutil.copytree(torn, tmp_path / "store")
    source = captures.teacher()
    with watched(source.loaded().model) as passes, pytest.raises(Interrupted):
        repaired(tmp_path, source, stop=lambda: 15 if passes else 0)
    artifact, damage = repaired(tmp_path, source)
    assert len(damage) == 2
    assert hashes(artifact.path) == hashes(calm)
    assert not list((tmp_path / "store").glob(".*aside*"))


def test_a_repair_goes_on_with_what_a_run_moved_aside(tmp_path, calm, torn):
    store = shutil.copytree(torn, tmp_path / "store")
    disk.set_aside(store / calm.name)
    artifact, damage = repaired(tmp_path)
    assert ["moved aside" in one for one in damage] == [True]
    assert hashes(artifact.path) == hashes(calm)
    assert not list(store.glob(".*aside*"))


def test_a_file_beside_the_caches_is_damage_too(tmp_path, calm, copy):
    (copy / "teacher.json").write_text("{}")
    artifact, damage = repaired(tmp_path)
    assert len(damage) == 1
    assert "teacher.json" in damage[0]
    assert hashes(artifact.path) == hashes(calm)
    assert not list((tmp_path / "store").glob(".*aside*"))


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
