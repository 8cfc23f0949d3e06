"""A capture by workers of Ray: the bytes of one process, against a copy of its API and over Ray itself."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from builders import captures, fake_ray, jobs, recipes
from builders.captures import hashes, job, rows
from builders.hooks import watched
from builders.over_ray import run_over_ray
from builders.tiny import save_tiny, tiny_model
from potstill.console import Bar
from potstill.errors import Interrupted, MachineError, RecipeError
from potstill.models import loading
from potstill.recipe.specs import EngineChoice
from potstill.stages import _capture
from potstill.stages._context import State
from potstill.stages._workers import require_workers
from potstill.stages._writing import in_bytes
from potstill.teachers import local
from potstill.teachers._context import TeacherContext

ROWS = rows(48)


@pytest.fixture
def fake(monkeypatch):
    """The copy of Ray, imported as Ray is."""
    monkeypatch.syspath_prepend(str(Path(fake_ray.__file__).parent))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    import ray as module

    yield module
    sys.modules.pop("ray", None)


def stored(place: Path):
    """A teacher on disk, as a worker loads it."""
    if not (place / "teacher").exists():
        save_tiny(place / "teacher", seed=1)
    reads = SimpleNamespace(vocabulary=SimpleNamespace(size=128))
    context = TeacherContext(place, torch.device("cpu"), lambda tokenizer, ends: reads)
    return local.build(context, model="teacher", dtype="float32")


def made(folder: Path, place: Path, engine: str | dict = "local", **how):
    """The capture of a teacher that lies in `place`, made in a store of its own."""
    return _capture.made(job(folder, ROWS, stored(place), engine=EngineChoice.model_validate(engine), **how))


TWO = {"ray": {"workers": 2, "cpus": 0.5}}


def test_two_workers_leave_the_bytes_of_one_process(fake, tmp_path):
    alone = made(tmp_path / "alone", tmp_path)
    by_two = made(tmp_path / "by two", tmp_path, TWO)
    assert hashes(by_two.path) == hashes(alone.path)
    assert fake.calls[-1]["num_cpus"] == 1
    assert not fake.is_initialized()
    assert by_two.key == alone.key  # who asks is no part of what is said


def test_workers_say_how_many_bytes_are_written(fake, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(Bar, "update", lambda _, done, note="": notes.append((done, note)))
    captured = made(tmp_path, tmp_path, TWO)
    done, note = notes[-1]
    assert note == in_bytes(done * captured.facts["kept"]["bytes_per_token"])
    assert done == sum(row.count for row in ROWS)


def test_workers_go_on_behind_a_stop_and_a_process_finishes_what_they_began(fake, tmp_path):
    alone = made(tmp_path / "alone", tmp_path)
    looks = []
    with pytest.raises(Interrupted):
        made(tmp_path / "cut", tmp_path, TWO, stop=lambda: 15 if looks.append(0) or len(looks) > 3 else 0)
    (folder,) = (tmp_path / "cut/store").glob(".building-capture-*/signals")
    assert list(folder.glob("shard-*.bin"))
    assert hashes(made(tmp_path / "cut", tmp_path).path) == hashes(alone.path)


def test_a_block_that_is_whole_is_no_task_of_a_worker(fake, tmp_path, monkeypatch):
    one = job(tmp_path / "cut", ROWS, stored(tmp_path))
    one.write(one.context.store.work("capture", one.key))
    passes, load = [], loading.load

    def watching(*given, **how):
        loaded = load(*given, **how)
        loaded.model.register_forward_pre_hook(
            lambda _, args, named: passes.append(named["input_ids"].shape), with_kwargs=True
        )
        return loaded

    monkeypatch.setattr(loading, "load", watching)
    made(tmp_path / "cut", tmp_path, TWO)
    assert all(tuple(shape) == (1, 4) for shape in passes)  # the look at the form of the head


def test_workers_write_vectors_of_the_students_head(fake, tmp_path):
    student = jobs.student(tmp_path / "student", tiny_model(seed=2))
    found = []
    for engine in ("local", TWO):
        how = {"signal": "kl_vector", "kinds": ("kl_vector",), "engine": EngineChoice.model_validate(engine)}
        one = job(tmp_path / str(engine)[:4], ROWS[:12], stored(tmp_path), **how)
        found.append(_capture.made(replace(one, state=State(student=student, untrained=student))))
    assert hashes(found[0].path) == hashes(found[1].path)


def test_a_deadline_is_that_of_every_worker(fake, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("potstill.stages._workers.time.time", lambda: now.append(now[-1] + 1.0) or now[-1])
    cut = made(tmp_path, tmp_path, TWO, deadline="20s", shard_bytes=512)
    assert 0 < cut.facts["coverage"] < 1


def test_a_worker_that_dies_says_that_what_was_written_is_kept(fake, tmp_path):
    fake.dying.append(True)
    with pytest.raises(MachineError, match="a worker of ray ended: .*run the same command again"):
        made(tmp_path, tmp_path, TWO)


def test_a_teacher_without_weights_here_is_refused(fake, tmp_path):
    source = captures.teacher()
    with (
        watched(source.loaded().model) as passes,
        pytest.raises(RecipeError, match="no weights that a worker"),
    ):
        _capture.made(job(tmp_path, ROWS, source, engine=EngineChoice(name="ray")))
    assert not passes


def test_what_cannot_be_is_refused_as_the_recipe_is_read():
    said = recipes.problems({"capture": {"engine": "vllm"}}, "distill")
    assert "teacher: {scores: URL" in said["stages.capture.engine"]
    for name in ("workers", "cpus"):
        (stage, _) = recipes.read({"capture": {"engine": {"ray": {name: 0}}}}, "distill").stages
        with pytest.raises(RecipeError, match=rf"stages.capture.engine.ray.{name}: cannot be 0"):
            require_workers(stage, SimpleNamespace(source=""))
    said = recipes.problems({"capture": {"engine": {"ray": {"workes": 2}}}}, "distill")
    assert "did you mean workers" in said["stages.capture.engine.ray.workes"]


REALLY = """
import sys
from pathlib import Path
from stages import test_workers as here
place = Path(sys.argv[1])
alone = here.made(place / "alone", place)
by_two = here.made(place / "by two", place, here.TWO)
assert here.hashes(by_two.path) == here.hashes(alone.path)
"""


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: potstill[ray]")
def test_two_workers_of_ray_itself_leave_the_bytes_of_one_process(tmp_path) -> None:
    """Half a CPU each, on a cluster of this machine."""
    run_over_ray(REALLY, tmp_path)
