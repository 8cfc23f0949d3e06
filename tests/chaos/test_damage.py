"""A byte that changes in a stored file is named, healed, or changes no figure."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders import places
from builders.cli import Done, potstill

STAGES = (
    "[{generate: {filters: null, max_new_tokens: 6}}, {distill: {steps: 4, learning_rate: 0.003, checkpoint_every: 1}}, "
    "{evaluate: {samples: 6, resamples: 100}}]"
)
MEASURED_TIME = ("train", "speed", "tokens_per_second", "artifacts", "versions")


def figures(place: Path) -> dict[str, Any]:
    """All of summary.json that no clock measures."""
    return {key: value for key, value in places.summary(place).items() if key not in MEASURED_TIME}


def stored(place: Path) -> dict[str, list[Path]]:
    """Every file of a finished run by its kind: the stage that left it, and its name."""
    kinds: dict[str, list[Path]] = {}
    runs = place / "runs"
    for file in sorted(path for path in runs.rglob("*") if path.is_file() and path.stat().st_size):
        inside = file.relative_to(runs)
        if not any(parent.is_symlink() for parent in file.parents) and ".locks" not in inside.parts:
            folder = inside.parts[1].partition("-")[0] if inside.parts[0] == ".store" else "run"
            kinds.setdefault(f"{folder}/{file.name}", []).append(file)
    return kinds


def flip(file: Path, dice: random.Random) -> None:
    """Change one bit of one byte."""
    data = bytearray(file.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    file.write_bytes(bytes(data))


def said(done: Done, file: Path) -> bool:
    """Whether a command names the file, and takes the fault for no bug of its own."""
    assert "Traceback" not in done.stderr, done.stderr
    assert "bug in potstill" not in done.stderr, done.stderr
    return file.name in done.stderr or f"{file.parent.name}/{file.name}" in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    place = places.write(tmp_path_factory.mktemp("finished"), stages=STAGES)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    shutil.copytree(place / "runs", place / "whole", symlinks=True)
    return place, figures(place)


def restored(finished: tuple[Path, dict[str, Any]]) -> Path:
    place = finished[0]
    shutil.rmtree(place / "runs")
    shutil.copytree(place / "whole", place / "runs", symlinks=True)
    return place


def prove_harmless(finished: tuple[Path, dict[str, Any]], kind: str, dice: random.Random) -> None:
    """Flip a bit in a file of this kind; then report refuses it by name or shows the same, and so does run.

    A report is made from the record alone, so a damaged artifact changes nothing on it.
    """
    place, whole = restored(finished), finished[1]
    file = dice.choice(stored(place)[kind])
    flip(file, dice)
    report = potstill("report", "runs/r", cwd=place)
    named = said(report, file)
    if report.returncode == 0:
        assert figures(place) == whole
    else:
        assert kind in ("run/record.json", "run/recipe.yaml"), report.stderr
        assert named or kind == "run/recipe.yaml", report.stderr
    run = potstill("run", "r.yaml", cwd=place)
    named = said(run, file)
    if run.returncode:
        assert named, run.stderr
        assert ".store" not in file.parts, run.stderr
    else:
        assert figures(place) == whole


KINDS = (
    "student/model.safetensors", "student/config.json", "student/tokenizer.json", "student/manifest.json",
    "generate/answers.jsonl", "generate/manifest.json", "train/model.safetensors", "train/metrics.jsonl",
    "train/manifest.json", "evaluate/evaluation.json", "evaluate/samples.jsonl", "evaluate/prompts.json", "evaluate/manifest.json",
    "run/summary.json", "run/run.json", "run/recipe.yaml", "run/record.json",
)  # fmt: skip


def test_every_kind_of_stored_file_is_known(finished):
    assert set(KINDS) <= stored(restored(finished)).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_is_named_healed_or_harmless(finished, kind):
    prove_harmless(finished, kind, random.Random(kind))


@pytest.mark.prove
def test_five_hundred_changed_bytes_are_named_healed_or_harmless(finished):
    dice = random.Random(1)
    kinds = sorted(stored(restored(finished)))
    for kind in turns(kinds, 500):
        prove_harmless(finished, kind, dice)


def turns(kinds: list[str], count: int) -> Iterator[str]:
    for number in range(count):
        yield kinds[number % len(kinds)]


def test_a_changed_summary_is_no_result_of_a_part_of_a_run(finished):
    """`potstill run --until distill` leaves the summary of the whole run in its place; what it then says is checked."""
    place = restored(finished)
    summary = place / "runs/r/summary.json"
    assert potstill("run", "--until", "distill", "r.yaml", cwd=place).returncode == 0
    summary.write_text(summary.read_text().replace('"value": ', '"value": 1', 1))
    done = potstill("run", "--until", "distill", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert said(done, summary)
    assert potstill("report", "runs/r", cwd=place).returncode == 0
    assert figures(place) == finished[1]
    assert potstill("run", "--until", "distill", "r.yaml", cwd=place).returncode == 0
