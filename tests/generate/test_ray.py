"""The engine over workers of Ray: against a copy of its API in one process, and over Ray itself where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from builders import fake_ray
from builders.over_ray import run_over_ray
from builders.tiny import EOS, PAD, save_tiny
from potstill.errors import DataError, MachineError, RecipeError
from potstill.generate import local, ray
from potstill.generate.request import Request, digest_of
from potstill.generate.sampling import Sampling
from potstill.store.lines import read_journal
from potstill.teachers import local as teachers
from potstill.teachers._context import TeacherContext

GREEDY, DRAWN = Sampling(8, temperature=0.0), Sampling(8, 0.9, top_p=0.9)


@pytest.fixture
def fake(monkeypatch):
    """The copy of Ray, imported as Ray is."""
    monkeypatch.syspath_prepend(str(Path(fake_ray.__file__).parent))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    import ray as module

    yield module
    sys.modules.pop("ray", None)


def portions(place: Path, sampling: Sampling = GREEDY, **changes: Any) -> list[Request]:
    """Three requests to a tiny teacher in `place`, and one with a part of its answers there already."""
    if not (place / "teacher").exists():
        save_tiny(place / "teacher", seed=16)
    context = TeacherContext(place, torch.device("cpu"), lambda tokenizer, ends: SimpleNamespace())
    teacher = teachers.build(context, model="teacher", dtype="float32")
    first = Request(
        teacher, [], sampling, stop_ids={EOS, *range(4, 14)}, pad_id=PAD, seed=0, batch_rows=3, vocabulary=120
    )
    prompts = [[[1, 20 + 5 * part + row, 11][: 2 + row % 2] for row in range(5)] for part in range(3)]
    requests = [replace(first, prompts=some, samples=2, **changes) for some in prompts]
    return [*requests[:2], replace(requests[2], skip={(0, 0), (4, 1)})]


def written(requests: list[Request], **options: Any) -> dict[tuple[int, int, int], Any]:
    found = list(ray.write(requests, **options))
    places = {(number, one.index, one.sample): one for number, one in found}
    assert len(places) == len(found)
    return places


def alone(requests: list[Request]) -> dict[tuple[int, int, int], Any]:
    """What the local engine writes in one process, request by request."""
    return {
        (number, one.index, one.sample): one
        for number, request in enumerate(requests)
        for one in local.write(request)
    }


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_answers_are_those_of_the_local_engine_in_one_process(fake, tmp_path, sampling, workers) -> None:
    requests = portions(tmp_path, sampling)
    assert written(requests, workers=workers, cpus=0.5) == alone(requests)
    # No more workers than portions; the cluster that was started is shut down.
    assert fake.calls[-1]["num_cpus"] == {1: 1, 2: 1, 5: 2}[workers]
    assert not fake.is_initialized()


def test_each_worker_keeps_a_journal_of_its_own(fake, tmp_path) -> None:
    requests = portions(tmp_path, journal=tmp_path / "answers.jsonl")
    places = written(requests)
    files = sorted(tmp_path.glob("answers.jsonl.worker-*"))
    assert len(files) == 2
    lines = {
        (line["prompt"], line["sample"]): (line["ids"], line["finish"])
        for file in files
        for line in read_journal(file)
    }
    assert lines == {
        (digest_of(requests[number].prompts[index]), sample): ([*one.ids], one.finish)
        for (number, index, sample), one in places.items()
    }


def test_a_cluster_that_is_there_already_is_used_and_left(fake, tmp_path) -> None:
    del fake.calls[:]
    fake.init()
    written(portions(tmp_path), address="auto")
    assert len(fake.calls) == 1
    assert fake.is_initialized()
    fake.shutdown()


def test_an_error_of_a_worker_is_its_own(fake, tmp_path) -> None:
    requests = portions(tmp_path)
    with pytest.raises(DataError, match="Prompt 1 has no tokens"):
        written([replace(requests[0], prompts=[[1], []])])
    fake.dying.append(True)
    with pytest.raises(
        MachineError, match="a worker of ray ended: The actor died.*what workers have written"
    ):
        written(requests)


def test_a_worker_that_does_not_see_the_folder_says_so(fake, tmp_path) -> None:
    with pytest.raises(MachineError, match="a worker does not see .*all machines share"):
        written(portions(tmp_path, journal=tmp_path / "away" / "answers.jsonl"))


def test_an_address_without_a_cluster_is_named(fake, tmp_path) -> None:
    with pytest.raises(MachineError, match="ray does not start: Could not find any running"):
        written(portions(tmp_path), address="nowhere")


def test_nothing_is_started_after_a_stop(fake, tmp_path) -> None:
    del fake.calls[:]
    assert written(portions(tmp_path, should_stop=lambda: True)) == {}
    assert fake.calls == []


def test_a_missing_package_is_named_with_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'potstill\[ray\]'"):
        ray.require(None)


@pytest.mark.parametrize("option", ["workers", "cpus"])
def test_an_option_that_cannot_be_is_refused(option) -> None:
    with pytest.raises(RecipeError, match=f"{option}: cannot be 0"):
        written([], **{option: 0})


REALLY = """
import sys
from pathlib import Path
from generate import test_ray as here
place = Path(sys.argv[1])
for sampling in (here.GREEDY, here.DRAWN):
    requests = here.portions(place, sampling, journal=place / f"{sampling.temperature}.jsonl")
    assert here.written(requests, workers=2, cpus=0.5) == here.alone(requests)
assert len([*place.glob("*.worker-*")]) == 4
"""


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed: potstill[ray]")
def test_two_workers_of_ray_itself_write_what_one_process_writes(tmp_path) -> None:
    run_over_ray(REALLY, tmp_path)
