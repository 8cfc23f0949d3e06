"""A capture: the same bytes whatever happens on the way, and the teacher's word for every row that is asked."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders import captures, recipes
from builders.captures import captured, forked, hashes, job, reading, rows, together
from builders.hooks import watched
from builders.tiny import save_tiny
from potstill.cache.keys import key_of
from potstill.cache.reader import Cache
from potstill.data.batch import collate
from potstill.errors import CacheMiss, DataError, Interrupted, MachineError, RecipeError
from potstill.runs import caches
from potstill.signals.topk import TopK
from potstill.stages import _capture, _writing
from potstill.stages._plan import BLOCK_BATCHES, drawn_order, each_once, plan_of
from potstill.teachers.cached import SIGNALS

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
ROWS = rows(48)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """An undisturbed capture, and how long it takes."""
    began = time.monotonic()
    artifact = captured(tmp_path_factory.mktemp("calm"), ROWS)
    return artifact, time.monotonic() - began


def test_the_captured_signal_of_a_row_is_the_teachers(calm):
    artifact, _ = calm
    live, cached = captures.teacher(), reading(artifact)
    for row in ROWS:
        batch = collate([row], pad_id=0)
        wanted, got = live.signal(batch), cached.signal(batch)
        assert (got.hidden - wanted.hidden).abs().max() <= 2**-10 * wanted.hidden.abs().max()
        assert got.head.weight.shape == wanted.head.weight.shape


def survive(folder, calm, kills: int, seed: int) -> None:
    """Kill a capture at random moments until it was killed so often; its cache is then the undisturbed one."""
    artifact, length = calm
    dice, done = random.Random(seed), 0
    while done < kills:
        done += forked(lambda: captured(folder, ROWS), dice.uniform(0, 1.2 * length)) == 9
        place = folder / "store" / artifact.path.name
        if place.exists() and done < kills:
            assert hashes(place) == hashes(artifact.path)
            shutil.rmtree(place)
    assert hashes(captured(folder, ROWS).path) == hashes(artifact.path)


def test_a_capture_that_is_killed_five_times_leaves_the_undisturbed_bytes(tmp_path, calm):
    survive(tmp_path, calm, 5, seed=0)


@pytest.mark.prove
def test_a_capture_that_is_killed_fifty_times_leaves_the_undisturbed_bytes(tmp_path, calm):
    survive(tmp_path, calm, 50, seed=1)


def test_two_processes_leave_the_bytes_of_one(tmp_path, calm):
    artifact, _ = calm
    together(tmp_path / "meeting", 2, lambda: captured(tmp_path, ROWS))
    assert hashes(tmp_path / "store" / artifact.path.name) == hashes(artifact.path)


def test_shares_that_are_written_side_by_side_leave_the_bytes_of_one_run(tmp_path, calm):
    artifact, _ = calm
    whole = job(tmp_path, ROWS)
    for index in (2, 0, 1):
        folder = whole.context.store.work("capture", whole.key)
        assert whole.write(folder, (index, 3)).whole
    live = captures.teacher()
    with watched(live.loaded().model) as passes:
        again = captured(tmp_path, ROWS, live)
    assert not passes
    assert hashes(again.path) == hashes(artifact.path)


def test_a_stop_signal_costs_no_block_that_is_written(tmp_path, calm):
    source = captures.teacher()
    with watched(source.loaded().model) as before, pytest.raises(Interrupted):
        captured(tmp_path, ROWS, source, stop=lambda: 15 if len(before) > 60 else 0)
    with watched(source.loaded().model) as after:
        again = captured(tmp_path, ROWS, source)
    assert hashes(again.path) == hashes(calm[0].path)
    with watched(source.loaded().model) as undisturbed:
        captured(tmp_path / "another", ROWS, source)
    assert len(before) + len(after) == len(undisturbed)


def test_what_is_under_way_can_be_read(tmp_path):
    """A partial cache has whole rows alone, and what it holds is right."""
    source = captures.teacher()
    with watched(source.loaded().model) as passes, pytest.raises(Interrupted):
        captured(tmp_path, ROWS, source, stop=lambda: 15 if len(passes) > 60 else 0)
    (folder,) = (tmp_path / "store").glob(".building-capture-*/signals")
    cache = Cache.open(folder)
    assert not cache.complete
    held = [row for row in ROWS if key_of(row.input_ids, row.scored) in cache]
    assert 0 < len(held) < len(ROWS)
    for row in held:
        assert cache.signal(row.input_ids, row.scored).rows == row.count


def test_rows_that_are_alike_are_stored_once(tmp_path):
    source, twins = captures.teacher(), [replace(row, id=f"{row.id} again") for row in ROWS[:8]]
    facts = captured(tmp_path, [*ROWS[:8], *twins], source).facts
    assert facts["rows"] == facts["planned_rows"] == 8


def test_a_full_disk_is_met_before_a_block_is_asked_for(tmp_path, calm, monkeypatch):
    """The message counts the bytes that are missing, and the next run goes on with what there is."""
    usage, source = shutil.disk_usage(tmp_path), captures.teacher()
    left = [10**9] * 3

    def free(path):
        return usage._replace(free=left.pop() if left else 1000)

    monkeypatch.setattr(_writing.shutil, "disk_usage", free)
    with (
        watched(source.loaded().model) as passes,
        pytest.raises(MachineError, match="bytes are missing") as caught,
    ):
        captured(tmp_path, ROWS, source)
    asked = len(passes)
    wanted = int(caught.value.message.split()[0])
    assert wanted > _writing.ROOM - 1000
    assert caught.value.exit_code == 3
    monkeypatch.undo()
    with watched(source.loaded().model) as passes:
        again = captured(tmp_path, ROWS, source)
    assert hashes(again.path) == hashes(calm[0].path)
    assert 0 < len(passes) < len(ROWS)
    assert asked > 0


def test_a_deadline_leaves_a_cache_that_says_what_it_covers(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 1.0) or now[-1])
    artifact = captured(tmp_path, ROWS, deadline="10s", shard_bytes=512)
    cached, facts = reading(artifact), artifact.facts
    assert 0 < facts["coverage"] < 1
    held = [row for row in ROWS if key_of(row.input_ids, row.scored) in cached.cache]
    assert len(held) == facts["rows"] < facts["planned_rows"] == len(ROWS)
    missing = next(row for row in ROWS if row not in held)
    with pytest.raises(CacheMiss, match=missing.id):
        cached.signal(collate([missing], pad_id=0))


def test_a_deadline_before_the_first_row_is_an_error(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 60.0) or now[-1])
    with pytest.raises(DataError, match="no row was captured"):
        captured(tmp_path, ROWS, deadline="30s")


def test_a_later_deadline_goes_on_with_what_an_earlier_one_left(tmp_path, monkeypatch):
    """A teacher is not paid for twice; the cache is that of a capture without an end."""
    now = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr(_capture.time, "monotonic", lambda: now.append(now[-1] + 1.0) or now[-1])
        cut = captured(tmp_path, ROWS, deadline="10s", shard_bytes=512)
    assert 0 < cut.facts["coverage"] < 1
    source = captures.teacher()
    with watched(source.loaded().model) as undisturbed:
        whole = captured(tmp_path / "another", ROWS, source, shard_bytes=512)
    with watched(source.loaded().model) as passes:
        again = captured(tmp_path, ROWS, source, deadline="1h", shard_bytes=512)
    assert again.path != cut.path
    assert again.facts["coverage"] == 1
    assert 0 < len(passes) < len(undisturbed)
    assert hashes(again.path / SIGNALS) == hashes(whole.path / SIGNALS)
    with watched(source.loaded().model) as passes:
        captured(tmp_path, ROWS, source, shard_bytes=512)
    assert len(passes) == 0
    assert reading(cut).cache.verify() == []


def test_a_teacher_that_is_read_block_by_block_is_captured_by_one_process(tmp_path):
    """Its states wait in one folder, and each process would read all of it."""
    source = captures.teacher()
    source.prepare = lambda rows, **how: None
    with pytest.raises(RecipeError, match=r"cannot be shared.* without --shard"):
        job(tmp_path, ROWS, source).write(tmp_path / "folder", (0, 2))


def test_what_is_said_before_is_what_is_written(tmp_path, monkeypatch):
    """The head beside hidden states is most of a small cache."""
    said = []
    monkeypatch.setattr(_capture.Job, "_say", lambda self, kept, size: said.append(size))
    made = captured(tmp_path, ROWS).path
    files = [*made.rglob("shard-*.bin"), *made.rglob("head.safetensors")]
    assert said[0] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)


def test_later_positions_may_have_more_ids_than_the_first_ones(tmp_path, monkeypatch):
    """Engines give the scored token beside the likeliest ones where it is the next likely."""
    monkeypatch.setattr(_capture, "SAMPLE_TOKENS", 1)
    source, asked = captures.teacher(), []

    def signal(batch):
        asked.append(batch)
        ids = torch.arange(2 + len(asked)).expand(batch.count, -1)
        return TopK(ids, torch.full(ids.shape, 0.5 / ids.shape[1]).log())

    source.signal = signal
    made = captured(tmp_path, ROWS, source, kinds=("topk",), signal="topk", max_kl_nats=None)
    assert made.facts["coverage"] == 1
    assert Cache.open(made.path / SIGNALS).verify() == []


def test_the_given_tokens_log_probabilities_are_compared_with_a_live_teacher(tmp_path):
    place = str(captured(tmp_path, ROWS[:6], signal="token").path)
    for seed, passed in ((1, True), (9, False)):
        verified = caches.verify(Path(place), str(save_tiny(tmp_path / str(seed), seed=seed)), "float32")
        assert verified.passed is passed
        assert (verified.distance < 1e-5) is passed


def test_what_a_teacher_is_shown_beside_a_row_is_asked_live():
    """Nothing of it was captured."""
    stage = {"distill": {"name": "shown", "privileged": {"column": "hint"}}}
    assert "live" in recipes.read(stages=["capture", stage]).stages[1].asks


def test_a_plan_asks_for_every_row_once_in_batches_that_fit():
    plan = plan_of(drawn_order(ROWS, 3), batch_tokens=64, bytes_per_token=64.0, part_bytes=4096)
    assert sorted(row.id for row in plan.rows) == sorted(row.id for row in ROWS)
    for part in plan.parts:
        assert part
        for block in part:
            for batch in block.batches:
                assert len(batch) * max(len(row.input_ids) for row in batch) <= 64 or len(batch) == 1
            assert sum(len(row.input_ids) for row in block.rows) < (BLOCK_BATCHES + 1) * 64
    assert len(plan.parts) > 2


def test_what_is_asked_is_drawn_from_the_seed_alone():
    assert drawn_order(ROWS, 1) == drawn_order(ROWS, 1) != drawn_order(ROWS, 2)
    silent = [row.silent() for row in ROWS[:2]]
    assert len(each_once([*ROWS, *ROWS, *silent])) == len(ROWS)


CHANGES = {
    "another teacher": lambda one: replace(one, context=captures.job(one.context.setup.base, ROWS, captures.Memory(None, "other")).context),
    "other ids": lambda one: replace(one, rows=(replace(one.rows[0], input_ids=(9, *one.rows[0].input_ids[1:])), *one.rows[1:])),
    "other scored tokens": lambda one: replace(one, rows=(one.rows[0].silent(), *one.rows[1:])),
    "another signal": lambda one: replace(one, spec=one.spec.model_copy(update={"signal": "topk"})),
    "another limit": lambda one: replace(one, spec=one.spec.model_copy(update={"max_kl_nats": 0.5})),
    "another temperature": lambda one: replace(one, needs=replace(one.needs, temperatures=(1.0, 2.0))),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_capture_of_something_else_is_another_artifact(tmp_path, change):
    one = job(tmp_path, ROWS)
    assert CHANGES[change](job(tmp_path, ROWS)).key != one.key


def test_the_name_of_a_stage_and_of_its_rows_changes_no_capture(tmp_path):
    one = job(tmp_path, ROWS)
    renamed = tuple(replace(row, id=f"{row.id}x") for row in one.rows)
    again = replace(one, rows=renamed, spec=one.spec.model_copy(update={"name": "other"}))
    assert again.key == one.key
