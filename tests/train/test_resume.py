"""Continuing after a crash: a damaged checkpoint, the first save, a signal in a long measurement."""

from __future__ import annotations

import errno
import itertools
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from builders.hooks import watched
from builders.jobs import Memory, events, student, trained
from builders.tiny import tiny_model
from potstill.errors import Interrupted, MachineError
from potstill.stages import _train
from potstill.train import checkpoint, folder, loop, pace
from potstill.types import Example

ROWS = [Example(f"r{i}", tuple(range(4 + i, 14 + i)), (False,) * 3 + (True,) * 7) for i in range(12)]
TEACHER = Memory(tiny_model(seed=1))


def run(folder, stop=lambda: 0, **changes):
    start = student(folder / "s", tiny_model())
    options = {"steps": 6, "learning_rate": 1e-2, "tokens_per_step": 14} | changes
    return trained(folder, start, TEACHER, ROWS, stop=stop, **options)


def stopped_at(folder, step: int, **changes) -> list:
    """Checkpoints of a run that a signal ended, oldest first."""

    def signal() -> int:
        logs = list((folder / "store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logs and len(events(logs[0].parent, "step")) >= step else 0

    with pytest.raises(Interrupted):
        run(folder, signal, **changes)
    (place,) = (folder / "store").glob(".building-train-*/.checkpoints")
    return sorted(place.glob("step-*"))


@pytest.mark.parametrize("length", [0, 100])
@pytest.mark.parametrize("name", ["weights/tensors.safetensors", "optimizer/tensors.safetensors"])
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_run_continues_from_an_undamaged_checkpoint_or_begins_again(tmp_path, name, length, damaged):
    """A file of the newest one lost its end: an older one is used, and without any the stage begins again."""
    calm = tmp_path / "calm"
    whole = run(calm, checkpoint_every=1)
    saved = stopped_at(tmp_path, 4, checkpoint_every=1)
    assert len(saved) == 2
    for place in saved[-damaged:]:
        (place / name).write_bytes((place / name).read_bytes()[:length])
    again = run(tmp_path, checkpoint_every=1)
    one, other = (load_file(made.path / "student/model.safetensors") for made in (whole, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [event["step"] for event in events(again.path, "step")] == list(range(1, 7))


def test_a_checkpoint_with_a_flipped_byte_is_passed_over(tmp_path):
    """Sizes agree, content does not: the manifest of a checkpoint holds the hashes of its files."""
    older, newest = stopped_at(tmp_path, 4, checkpoint_every=1)
    data = bytearray((newest / "weights/tensors.safetensors").read_bytes())
    data[-2] ^= 0x40
    (newest / "weights/tensors.safetensors").write_bytes(bytes(data))
    result = checkpoint.newest(newest.parent)
    assert result is not None
    assert result.path == older


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_the_first_step(tmp_path, monkeypatch):
    """Hours of training must not end at their first checkpoint."""
    full = SimpleNamespace(total=10**12, used=10**12, free=1000)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: full)
    with pytest.raises(MachineError, match=r"checkpoints need .* GB, and .* has 0\.0 GB free") as refused:
        run(tmp_path)
    assert "runs:" in refused.value.fix
    (work,) = (tmp_path / "store").glob(".building-train-*")
    assert not (work / "metrics.jsonl").exists()


def test_a_checkpoint_is_made_when_so_much_time_has_passed(tmp_path, monkeypatch):
    """A clock that moves a minute a step, and `2m`: a checkpoint every second step or third, none at each."""
    minutes = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 60.0 * next(minutes))
    saved = []
    for module in (loop, pace):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(
        _train.TrainingFolder, "save", lambda self, module, progress, optimizer: saved.append(progress.step)
    )
    monkeypatch.setattr(_train.TrainingFolder, "take_best", lambda self, module: None)
    run(tmp_path, checkpoint_every="10m", steps=12)
    assert saved[-1] == 12
    assert 1 <= len(saved[:-1]) <= 6


def test_the_best_weights_are_written_once_and_the_end_of_a_training_writes_nothing_more(
    tmp_path, monkeypatch
):
    """One file for each better validation, and a last checkpoint without weights or optimizer."""
    monkeypatch.setattr(_train.TrainingFolder, "take_best", _full)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path, validate_every=3)
    (place,) = (tmp_path / "store").glob(".building-train-*/.checkpoints")
    names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert names == ["best-00000006/tensors.safetensors", "step-00000006/state.json"]


@pytest.mark.parametrize("every", [2, 100])
def test_best_weights_that_wait_in_memory_are_those_that_were_written_at_once(tmp_path, monkeypatch, every):
    """As beside a GPU: a rate so high that an early validation stays the best, with and without checkpoints."""
    spoiling = {"steps": 8, "learning_rate": 0.3, "validate_every": 1, "checkpoint_every": every}
    calm = run(tmp_path / "calm", **spoiling)
    monkeypatch.setattr(_train, "_holds_best", lambda run, module: True)
    written = []
    save = checkpoint.save_best
    monkeypatch.setattr(checkpoint, "save_best", lambda *args: written.append(args[1]) or save(*args))
    held = run(tmp_path / "held", **spoiling)
    measured = events(calm.path, "validation")
    best = min(measured[1:], key=lambda event: event["loss"])["step"]
    assert 1 < best < 8
    assert written[-1] == best
    assert len(written) == 1 or every == 2
    assert len(written) < sum(event["best"] for event in measured)
    one, other = (load_file(made.path / "student/model.safetensors") for made in (calm, held))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_stop_writes_the_best_weights_that_wait_in_memory(tmp_path, monkeypatch):
    """The run that goes on has them; nothing better comes behind."""
    spoiling = {"steps": 8, "learning_rate": 0.3, "validate_every": 1, "checkpoint_every": 100}
    calm = run(tmp_path / "calm", **spoiling)
    monkeypatch.setattr(_train, "_holds_best", lambda run, module: True)
    stopped_at(tmp_path, 6, **spoiling)
    again = run(tmp_path, **spoiling)
    one, other = (load_file(made.path / "student/model.safetensors") for made in (calm, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


def _full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_signal_ends_a_long_measurement(tmp_path):
    """Thirty batches of validation rows, a signal at the second: no thirtieth is measured."""
    many = [Example(f"v{i}", ROWS[0].input_ids, ROWS[0].scored) for i in range(30)]
    teacher = tiny_model(seed=1)
    start = student(tmp_path / "s", tiny_model())
    slow = {"micro_batch_tokens": 10, "validation": many}
    with watched(teacher.model) as passes:
        with pytest.raises(Interrupted):
            trained(
                tmp_path, start, Memory(teacher), ROWS, stop=lambda: 15 if len(passes) >= 3 else 0, **slow
            )
        assert len(passes) <= 5


def test_a_training_that_is_through_is_not_trained_again(tmp_path, monkeypatch):
    """The disk was full when the student was written: the next run only writes it."""
    whole = run(tmp_path / "calm")

    with monkeypatch.context() as patch:
        patch.setattr(_train.TrainingFolder, "take_best", _full)
        with pytest.raises(OSError, match="No space"):
            run(tmp_path)
    again = run(tmp_path)
    assert [event["step"] for event in events(again.path, "resumed")] == [6]
    one, other = (load_file(made.path / "student/model.safetensors") for made in (whole, again))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [event["step"] for event in events(again.path, "step")] == list(range(1, 7))
