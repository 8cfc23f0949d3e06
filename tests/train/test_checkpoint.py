"""A checkpoint is whole or passed over, and only the newest are kept."""

from __future__ import annotations

import pytest

from builders.jobs import spec_of
from builders.tiny import tiny_model
from potstill.store import disk
from potstill.train import checkpoint
from potstill.train.optimizer import make_optimizer
from potstill.train.step import StudentModule


@pytest.fixture
def save(tmp_path):
    """Save a tiny student's training at a step."""
    module = StudentModule(tiny_model(), 128)
    optimizer = make_optimizer(module, spec_of(learning_rate=1e-3))
    return lambda step: checkpoint.save(tmp_path, step, module, optimizer, {})


def test_new_checkpoints_are_kept_beside_damaged_ones_of_later_steps(tmp_path, save):
    """Pruning by step number alone deleted each new checkpoint."""
    for step in (20, 30):
        (save(step) / "weights/tensors.safetensors").write_bytes(b"x")
    assert checkpoint.newest(tmp_path) is None
    for step in (1, 10):
        assert save(step).exists()
        assert checkpoint.newest(tmp_path).state["step"] == step


def test_an_incomplete_checkpoint_is_passed_over(tmp_path, save):
    for step in (1, 2):
        save(step)
    (tmp_path / "step-00000002" / "state.json").unlink()
    (tmp_path / "step-00000009").mkdir()
    assert checkpoint.newest(tmp_path).state["step"] == 1


def test_only_the_newest_checkpoints_are_kept(tmp_path, save):
    for step in (1, 2, 3, 4):
        save(step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_checkpoint_whose_state_has_changed_is_passed_over(tmp_path, save):
    """One digit of the cursor would train something else."""
    for step in (1, 2):
        save(step)
    state = tmp_path / "step-00000002/state.json"
    state.write_text(state.read_text().replace('"step": 2', '"step": 3'))
    assert checkpoint.newest(tmp_path).state["step"] == 1


def test_a_step_that_is_saved_again_replaces_the_first(tmp_path, save):
    assert save(1) == save(1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_kill_over_the_removal_of_old_checkpoints_sticks_no_run(tmp_path, save, monkeypatch):
    for step in (1, 2):
        save(step)

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save(3)
    assert checkpoint.newest(tmp_path).state["step"] == 3
    save(4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
