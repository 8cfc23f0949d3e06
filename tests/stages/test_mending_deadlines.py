"""A capture that its deadline cut short is mended as it was: what was left out stays left out."""

from __future__ import annotations

import shutil

import pytest

from builders import captures
from builders.captures import captured, hashes
from builders.repairs import ROWS, flip, repaired, tear, watched_rows
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.errors import Interrupted, MachineError
from potstill.stages import _capture
from potstill.teachers.cached import SIGNALS

SHORT = {"batch_tokens": 4, "shard_bytes": 6000, "deadline": "7s"}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A capture that its deadline cut short, within a file of several blocks."""
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 1.0) or now[-1])
        artifact = captured(tmp_path_factory.mktemp("short"), ROWS, **SHORT)
    files = Cache.open(artifact.path / SIGNALS)._index.blocks["shard"] >> 16
    assert files.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert (artifact.facts["rows"], artifact.facts["planned_rows"]) == (25, 48)
    return artifact


def lose(folder, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def copied(artifact, folder):
    """A copy of an artifact in a store below `folder`."""
    return shutil.copytree(artifact.path, folder / "store" / artifact.path.name)


@pytest.mark.parametrize(
    ("what", "by_run"),
    [("block", False), ("index", False), ("list", False), ("list and manifest", False), ("all shards", False), ("shard", True)],
)  # fmt: skip
def test_what_a_deadline_left_out_stays_left_out(tmp_path, short, what, by_run):
    """Any of three files says what was captured, and a deadline that is over stops no repair."""
    copy = copied(short, tmp_path)
    shards = sorted((copy / SIGNALS).glob("shard-*.bin"))
    if what == "shard":
        shards[-1].unlink()
    elif what == "all shards":
        lose(copy / SIGNALS, *(shard.name for shard in shards))
    else:
        flip(shards[0], shards[0].stat().st_size - 1)
    if what == "index":
        lose(copy / SIGNALS, "index.bin")
    if what.startswith("list"):
        lose(copy, "not_captured.json")
    if what == "list and manifest":
        lose(copy, "manifest.json")
    whole = Cache.open(short.path / SIGNALS)
    kept = {row.id for row in ROWS if key_of(row.input_ids, row.scored) in whole}
    now = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        asked = watched_rows(patch)
        patch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 60.0) or now[-1])
        artifact = captured(tmp_path, ROWS, **SHORT) if by_run else repaired(tmp_path, **SHORT)[0]
    assert hashes(artifact.path) == hashes(short.path)
    for fact in ("rows", "planned_rows", "coverage"):
        assert artifact.facts[fact] == short.facts[fact]
    # Without a manifest nobody knows the setting, which is measured again on rows of the beginning.
    assert len(asked) > 0
    assert set(asked) <= kept or what == "list and manifest"


def test_a_stopped_repair_of_what_a_deadline_cut_short_goes_on_with_that_alone(tmp_path, short):
    copy, source = copied(short, tmp_path), captures.teacher()
    lost = tear(
        copy, [row for row in ROWS if key_of(row.input_ids, row.scored) in Cache.open(copy / SIGNALS)], 2
    )
    with pytest.MonkeyPatch.context() as patch:
        asked = watched_rows(patch)
        with pytest.raises(Interrupted):
            repaired(tmp_path, source, stop=lambda: 15 if asked else 0, **SHORT)
        artifact, damage = repaired(tmp_path, source, **SHORT)
    assert len(damage) == 2
    assert set(asked) <= lost
    assert hashes(artifact.path) == hashes(short.path)


def test_a_later_deadline_behind_a_repair_asks_for_the_rest(tmp_path, short):
    flip(next((copied(short, tmp_path) / SIGNALS).glob("shard-*.bin")), 200)
    mended, _ = repaired(tmp_path, **SHORT)
    with pytest.MonkeyPatch.context() as patch:
        asked = watched_rows(patch)
        more = captured(tmp_path, ROWS, **SHORT | {"deadline": "1h"})
    assert more.facts["coverage"] == 1
    assert len(set(asked)) == more.facts["rows"] - mended.facts["rows"]


def test_where_nothing_says_what_a_deadline_left_out_a_repair_asks_until_its_deadline(tmp_path, short):
    copy = copied(short, tmp_path)
    lose(copy, "not_captured.json", "manifest.json", f"{SIGNALS}/index.bin")
    artifact, damage = repaired(tmp_path, **SHORT)
    assert damage
    assert artifact.facts["coverage"] == 1


@pytest.mark.parametrize("by_run", [False, True])
def test_with_another_deadline_a_stopped_repair_is_gone_on_with_and_the_rest_is_asked_for(
    tmp_path, short, by_run
):
    copy, source = copied(short, tmp_path), captures.teacher()
    held = [row for row in ROWS if key_of(row.input_ids, row.scored) in Cache.open(copy / SIGNALS)]
    lost = tear(copy, held, 2)
    later = SHORT | {"deadline": "1h"}
    with pytest.MonkeyPatch.context() as patch:
        asked = watched_rows(patch)
        with pytest.raises(Interrupted):
            repaired(tmp_path, source, stop=lambda: 15 if asked else 0, **SHORT)
        mended = set(asked)
        asked.clear()
        if by_run:
            more = captured(tmp_path, ROWS, source, **later)
        else:
            more, damage = repaired(tmp_path, source, **later)
            assert len(damage) == 2
    assert mended
    assert mended < lost
    assert len(asked) == len(set(asked))
    assert set(asked) == (lost - mended) | {row.id for row in ROWS} - {row.id for row in held}
    assert more.facts["coverage"] == 1
    assert hashes(more.path / SIGNALS) == hashes(
        captured(tmp_path / "whole", ROWS, source, **later).path / SIGNALS
    )


def test_with_another_deadline_a_stopped_capture_is_gone_on_with(tmp_path):
    first, later = SHORT | {"deadline": "2h"}, SHORT | {"deadline": "1h"}
    with pytest.MonkeyPatch.context() as patch:
        asked = watched_rows(patch)
        patch.setattr(_capture, "SAMPLE_TOKENS", 8)
        with pytest.raises(Interrupted):
            captured(tmp_path, ROWS, stop=lambda: 15 if len(asked) > 20 else 0, **first)
        (work,) = (tmp_path / "store").glob(".building-capture-*")
        held = Cache.open(work / SIGNALS)
        written = {row.id for row in ROWS if key_of(row.input_ids, row.scored) in held}
        asked.clear()
        more = captured(tmp_path, ROWS, **later)
    assert more.facts["coverage"] == 1
    assert 0 < len(written) < len(ROWS)
    assert sorted(asked) == sorted({row.id for row in ROWS} - written)


def test_a_capture_that_another_process_makes_or_mends_is_not_repaired_beside_it(tmp_path, short):
    copy = copied(short, tmp_path)
    flip(next((copy / SIGNALS).glob("shard-*.bin")), 200)
    before = hashes(tmp_path)
    one = captures.job(tmp_path, ROWS, **SHORT)
    with one.context.store.alone("capture", one.key) as free:
        assert free
        with pytest.raises(
            MachineError, match=rf"another process makes or mends {copy}.*Wait until it is done"
        ):
            repaired(tmp_path, **SHORT)
    assert {name: hashes(tmp_path)[name] for name in before} == before
    assert repaired(tmp_path, **SHORT)[1]
