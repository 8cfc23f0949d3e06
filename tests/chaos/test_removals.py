"""Whatever files of a folder that potstill writes are gone, the next run ends as if nothing had happened."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders import places
from builders.cli import potstill
from builders.jobs import Memory, events, student, trained
from builders.tiny import tiny_model
from potstill.errors import Interrupted
from potstill.types import Example

ROWS = [Example(f"r{i}", tuple(range(4 + i, 14 + i)), (False,) * 3 + (True,) * 7) for i in range(12)]
TEACHER = Memory(tiny_model(seed=1))
STAGES = (
    "[{generate: {filters: null, max_new_tokens: 6}}, {distill: {steps: 3, learning_rate: 0.003}}, "
    "{evaluate: {samples: 6, resamples: 100}}]"
)


def subsets(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Every subset but the empty one."""
    return [some for size in range(1, len(files) + 1) for some in itertools.combinations(files, size)]


def few(all_: Sequence[Any], count: int) -> list[Any]:
    return random.Random(count).sample(list(all_), min(count, len(all_)))


def remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink()


def train(folder: Path, start: Any, stop: Callable[[], int] = lambda: 0) -> Any:
    options = {"steps": 5, "learning_rate": 1e-2, "tokens_per_step": 14, "validate_every": 2}
    return trained(folder, start, TEACHER, ROWS, stop=stop, checkpoint_every=1, **options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> tuple[Path, Any, dict[str, torch.Tensor]]:
    """A training that a signal stopped, its student, and the weights of one that went through."""
    place = tmp_path_factory.mktemp("stopped")
    start = student(place / "s", tiny_model())
    whole = load_file(train(place / "calm", start).path / "student/model.safetensors")

    def signal() -> int:
        logs = list((place / "job/store").glob(".building-train-*/metrics.jsonl"))
        return 15 if logged_steps(logs) >= 3 else 0

    with pytest.raises(Interrupted):
        train(place / "job", start, signal)
    return place, start, whole


def logged_steps(logs: Sequence[Path]) -> int:
    return len(events(logs[0].parent, "step")) if logs else 0


def building(place: Path) -> list[Path]:
    """The files of a copy of the stopped training."""
    shutil.rmtree(place / "again", ignore_errors=True)
    shutil.copytree(place / "job", place / "again")
    (folder,) = (place / "again/store").glob(".building-*")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def ends_as_if_nothing_had_happened(stopped: tuple[Path, Any, dict[str, torch.Tensor]]) -> None:
    place, start, whole = stopped
    weights = load_file(train(place / "again", start).path / "student/model.safetensors")
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


def go_on_without(stopped: tuple[Path, Any, dict[str, torch.Tensor]], gone: Iterable[int]) -> None:
    files = building(stopped[0])
    remove(files[number] for number in gone)
    ends_as_if_nothing_had_happened(stopped)


def test_a_training_goes_on_without_any_one_of_its_files(stopped):
    files = building(stopped[0])
    assert {"state.json", "tensors.safetensors", "metrics.jsonl", ".seconds"} <= {file.name for file in files}
    folders = {file.parent.name.partition("-")[0] for file in files}
    assert {"step", "weights", "optimizer", "best"} < folders
    for number in range(len(files)):
        go_on_without(stopped, [number])


def test_a_training_goes_on_without_some_of_its_files(stopped):
    numbers = range(len(building(stopped[0])))
    for gone in few(subsets(numbers), 8):  # type: ignore[arg-type]
        go_on_without(stopped, gone)


@pytest.mark.prove
def test_a_training_goes_on_without_any_subset_of_its_files(stopped):
    numbers = range(len(building(stopped[0])))
    for gone in subsets(numbers):  # type: ignore[arg-type]
        go_on_without(stopped, gone)


@pytest.mark.parametrize("seed", range(2))
def test_a_training_goes_on_with_any_one_byte_of_its_files_changed(stopped, seed):
    dice = random.Random(seed)
    for number in range(len(building(stopped[0]))):
        file = building(stopped[0])[number]
        data = bytearray(file.read_bytes())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        file.write_bytes(bytes(data))
        ends_as_if_nothing_had_happened(stopped)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    place = places.write(tmp_path_factory.mktemp("finished"), stages=STAGES)
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    shutil.copytree(place / "runs", place / "whole", symlinks=True)
    return place, figures(place)


def figures(place: Path) -> dict[str, Any]:
    return {key: places.summary(place)[key] for key in ("before", "after", "reference", "artifacts")}


def restored(place: Path) -> Path:
    shutil.rmtree(place / "runs", ignore_errors=True)
    shutil.copytree(place / "whole", place / "runs", symlinks=True)
    return place / "runs"


def run_without(finished: tuple[Path, dict[str, Any]], gone: Iterable[Path]) -> None:
    """Remove these, and run again; paths are relative to the folder of runs."""
    place, whole = finished
    runs = restored(place)
    remove(runs / path for path in gone)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert figures(place) == whole
    assert (place / "runs/r/student/config.json").is_file()
    report = potstill("report", "runs/r", cwd=place)
    assert report.returncode == 0, report.stderr


def entries(folder: Path) -> list[Path]:
    """The files and links below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def in_run_folder(place: Path) -> list[Path]:
    runs = restored(place)
    return [path.relative_to(runs) for path in entries(runs / "r")]


def in_artifact(place: Path, stage: str) -> list[Path]:
    runs = restored(place)
    (folder,) = (runs / ".store").glob(f"{stage}-*")
    return [path.relative_to(runs) for path in entries(folder)]


def test_a_run_recovers_without_any_one_of_its_entries(finished):
    for path in in_run_folder(finished[0]):
        run_without(finished, [path])


def test_a_run_recovers_without_some_of_its_entries(finished):
    for gone in few(subsets(in_run_folder(finished[0])), 5):
        run_without(finished, gone)


@pytest.mark.parametrize("stage", ["generate", "student", "train", "evaluate"])
def test_a_run_recovers_without_some_files_of_an_artifact(finished, stage):
    for gone in few(subsets(in_artifact(finished[0], stage)), 2):
        run_without(finished, gone)


@pytest.mark.prove
def test_a_run_recovers_without_any_subset_of_its_entries(finished):
    for gone in subsets([path for path in in_run_folder(finished[0]) if not path.name.startswith(".")]):
        run_without(finished, gone)


def test_a_run_recovers_without_any_subset_of_what_an_exported_student_is(finished):
    """The link, the folder that it leads to, and the link that names the artifact."""
    for gone in subsets([path for path in in_run_folder(finished[0]) if "student" in path.name]):
        run_without(finished, gone)


@pytest.mark.prove
@pytest.mark.parametrize("stage", ["generate", "student", "train", "evaluate"])
def test_a_run_recovers_without_any_subset_of_files_of_an_artifact(finished, stage):
    for gone in subsets(in_artifact(finished[0], stage)):
        run_without(finished, gone)


@pytest.mark.parametrize("removed", ["recipe.yaml", "run.json", "summary.json", "student"])
def test_a_command_on_a_run_folder_without_an_entry_recovers_or_says_what_to_do(finished, removed):
    place = finished[0]
    remove([restored(place) / "r" / removed])
    for command in ("run", "report", "status"):
        done = potstill(command, "runs/r", cwd=place)
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 2), done.stderr
        assert done.returncode == 0 or done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "name", ["report.html", "summary.json", "recipe.yaml", "run.json", "stages", ".lock"]
)
@pytest.mark.parametrize("what", ["a folder", "a file"])
def test_what_stands_in_the_place_of_an_entry_is_moved_aside_or_named(finished, name, what):
    """Somebody's files are never deleted."""
    place = finished[0]
    target = restored(place) / "r" / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    if what == "a folder":
        target.mkdir()
        target = target / "mine"
    target.write_text("mine")
    done = potstill("run", "r.yaml", cwd=place)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode == 0:
        assert figures(place) == finished[1]
    else:
        assert done.returncode in (2, 3)
        assert name in done.stderr
    if what == "a folder":
        kept = list((place / "runs/r").rglob("mine"))
        assert [path.read_text() for path in kept] == ["mine"]
