"""A run that captures its teacher, and the same training and evaluation on a machine that never sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny
from potstill.console import Console
from potstill.errors import RecipeError
from potstill.models import loading
from potstill.runs import setup
from potstill.runs.run import run
from potstill.teachers.local import StoredTeacher

TRAINING = "{distill: {steps: 4, tokens_per_step: 40, learning_rate: 0.001}}, {evaluate: {samples: 4, resamples: 100}}"
# Long enough that some answers end, and others are left out by the filter of those that were cut off.
GENERATE = "generate: {max_new_tokens: 80, filters: [{loops: {action: count}}]}"
CAPTURE = "capture: {batch_tokens: 64, shard_bytes: 4096, signal: hidden}"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A run with its teacher, and what its capture left in a folder of its own."""
    place = tmp_path_factory.mktemp("captures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        save_tiny(place / "student", layers=1, seed=3)
        stages = f"[{{{GENERATE}}}, {{{CAPTURE}}}, {TRAINING}]"
        teacher = "{model: teacher, dtype: float32}"
        places.write(place, student="{model: student}", teacher=teacher, stages=stages)
        run(place / "r.yaml", console=QUIET)
        shutil.copytree((place / "runs/r/stages/capture").resolve(), place / "captured")
    return place


def figures(place: Path, runs: str) -> dict:
    stored = json.loads((place / runs / "r/stages/evaluate/evaluation.json").read_text())["models"]
    return {
        f"{role} {key}": figure["value"]
        for role, table in stored.items()
        for key, figure in table.items()
        if "per_second" not in key
    }


def losses(place: Path, runs: str) -> list[float]:
    lines = (place / runs / "r/stages/distill/metrics.jsonl").read_text().splitlines()
    return [event["loss"] for event in map(json.loads, lines) if event["event"] in ("step", "validation")]


def test_training_and_evaluation_go_on_without_the_teacher(here, tmp_path, monkeypatch):
    """The same losses and figures, the teacher's own answers among them, from a copy of the folder alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("student", "captured"):
        shutil.copytree(here / name, tmp_path / name)
    shutil.copy(here / "rows.jsonl", tmp_path)
    # The stage as it stood before the capture; what it kept is among the signals.
    generate = GENERATE.replace("{max", "{keep: hidden, max")
    stages = f"[{{{generate}}}, {TRAINING}]"
    places.recipe(tmp_path, student="{model: student}", teacher="{cache: captured}", stages=stages)
    run(tmp_path / "r.yaml", console=QUIET)
    assert losses(tmp_path, "runs") == losses(here, "runs")
    left_out = json.loads((here / "runs/r/stages/generate/manifest.json").read_text())["facts"]["left_out"]
    assert left_out["answer: cut off at the limit of tokens"] > 0
    assert figures(tmp_path, "runs") == figures(here, "runs")
    assert "teacher rouge_l" in figures(here, "runs")


def test_no_weight_of_the_teacher_is_loaded_behind_a_capture(here, monkeypatch):
    """A second training from the same capture, with another learning rate."""
    monkeypatch.chdir(here)
    loaded = []
    load = loading.load_model

    def spy(source, **how):
        loaded.append(source.path.name)
        return load(source, **how)

    monkeypatch.setattr(loading, "load_model", spy)
    run(here / "r.yaml", ["distill.learning_rate=0.002", "name=second"], console=QUIET)
    assert loaded
    assert "teacher" not in loaded


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ("[{distill: {strategy: on_policy, steps: 1}}]", "needs a teacher that can be asked about any text"),
        ("[capture, {distill: {steps: 1}}]", "is a cache, which knows the captured rows alone"),
    ],
)
def test_what_needs_a_live_teacher_is_refused_of_a_cache(here, monkeypatch, stages, words):
    monkeypatch.chdir(here)
    (here / "refused").mkdir(exist_ok=True)
    recipe = here / "refused.yaml"
    recipe.write_text(f"teacher: {{cache: captured}}\nstudent: {{model: student}}\ndata: {{train: rows.jsonl}}\nstages: {stages}\n")  # fmt: skip
    with pytest.raises(RecipeError, match=words):
        setup.set_up(setup.open_recipe(recipe))


def test_a_signal_that_a_later_stage_cannot_read_is_refused_before_the_run(here, monkeypatch):
    monkeypatch.chdir(here)
    recipe = here / "unreadable.yaml"
    stages = "[{capture: {signal: sampled}}, {distill: {name: polish, divergence: reverse_kl}}]"
    recipe.write_text(f"teacher: {{model: teacher}}\nstudent: {{model: student}}\ndata: {{train: rows.jsonl}}\nstages: {stages}\n")  # fmt: skip
    with pytest.raises(RecipeError, match="reverse_kl of polish does not support sampled"):
        setup.set_up(setup.open_recipe(recipe))


def test_caches_are_listed_described_and_verified(here):
    folder = str(here / "captured")
    assert "a teacher's signals (hidden) of" in potstill("cache", "ls", cwd=here).stdout
    stats = json.loads(potstill("cache", "stats", folder, "--json", cwd=here).stdout)
    assert stats["signals"]["kind"] == stats["heldout"]["kind"] == "hidden"
    assert potstill("cache", "verify", folder, cwd=here).returncode == 0
    again = potstill("cache", "verify", folder, "--teacher", "teacher", cwd=here)
    assert again.returncode == 0, again.stderr
    assert "the same" in again.stdout
    save_tiny(here / "impostor", seed=9)
    other = potstill("cache", "verify", folder, "--teacher", "impostor", cwd=here)
    assert other.returncode == 4
    assert "another teacher" in other.stdout
    shard = next((here / "captured/signals").glob("shard-*.bin"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    damaged = potstill("cache", "verify", folder, cwd=here)
    assert damaged.returncode == 4
    assert "block 0 of shard-" in damaged.stdout
    assert "Nothing to free" in potstill("cache", "gc", cwd=here).stdout


def test_captures_that_no_run_refers_to_are_freed_and_nothing_else(here, tmp_path):
    """Listed first, and freed with --yes, finished or not; answers and students are left to `store gc`."""
    place = shutil.copytree(here, tmp_path / "place", symlinks=True)
    store = place / "runs/.store"
    (store / ".building-capture-0123456789abcdef").mkdir()
    for run_folder in (place / "runs").glob("[!.]*"):
        shutil.rmtree(run_folder)
    captures = {path.name for path in store.iterdir() if "capture-" in path.name}
    others = {path.name for path in store.iterdir()} - captures
    assert len(captures) == 2
    listed = json.loads(potstill("cache", "gc", "--json", cwd=place).stdout)
    assert {entry["name"] for entry in listed["entries"]} == captures
    assert all((store / name).exists() for name in captures)
    done = json.loads(potstill("cache", "gc", "--yes", "--json", cwd=place).stdout)
    assert done["freed_bytes"] == listed["freeable_bytes"] > 1000
    assert {path.name for path in store.iterdir()} == others
    assert "0 entries" in potstill("cache", "ls", cwd=place).stdout


def test_a_teacher_that_remembers_is_asked_in_the_first_epoch_alone(tmp_path, monkeypatch):
    """A second training finds all rows there, and loads no weight; its first losses are those of the first."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "student", layers=1, seed=3)
    stages = "[{distill: {epochs: 2, tokens_per_step: 20, learning_rate: 0.001}}]"
    teacher = "{model: teacher, dtype: float32, cache: auto}"
    places.write(tmp_path, student="{model: student}", teacher=teacher, stages=stages)
    run(tmp_path / "r.yaml", console=QUIET)
    asked = []
    load = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda source, **how: asked.append(source.path.name) or load(source, **how))  # fmt: skip
    run(tmp_path / "r.yaml", ["name=second", "distill.weight_decay=0.1"], console=QUIET)
    assert "teacher" not in asked
    first, second = ([e["loss"] for e in places.steps(tmp_path, "distill")] for _ in range(2))
    again = json.loads((tmp_path / "runs/second/stages/distill/metrics.jsonl").read_text().splitlines()[1])
    assert again["loss"] == first[0] == second[0]


def test_shares_of_a_capture_are_written_beside_each_other(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher"):
        shutil.copytree(here / name, tmp_path / name)
    stages = f"[{{{GENERATE}}}, {{{CAPTURE}}}]"
    teacher = "{model: teacher, dtype: float32}"
    places.write(tmp_path, student="{model: student}", teacher=teacher, stages=stages)
    for share in ("2/2", "1/2"):
        done = potstill("capture", "r.yaml", "--shard", share, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"share {share[0]} of 2 is written" in done.stdout
    run(tmp_path / "r.yaml", console=QUIET)
    made, alone = (place / "runs/r/stages/capture/signals" for place in (tmp_path, here))
    for shard in sorted(alone.resolve().glob("shard-*.bin")):
        assert (made / shard.name).read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("limit", ["max_kl_nats: 0.01", "bytes_per_token: 40"])
def test_the_smallest_signal_that_a_later_stage_reads_is_measured_and_taken(tmp_path, monkeypatch, limit):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "student", layers=1, seed=3)
    stages = (
        f"[{{capture: {{{limit}}}}}, {{distill: {{divergence: reverse_kl, steps: 2, tokens_per_step: 40}}}}]"
    )
    places.write(
        tmp_path, student="{model: student}", teacher="{model: teacher, dtype: float32}", stages=stages
    )
    run(tmp_path / "r.yaml", console=QUIET)
    facts = json.loads((tmp_path / "runs/r/stages/capture/manifest.json").read_text())["facts"]
    assert facts["signal"] in ("hidden", "topk")
    assert facts["why"]
    if "bytes" in limit:
        assert facts["bytes_per_token"] <= 40 * 1.1
    else:
        assert facts["measured"]["kl_mean"] <= 0.01


@pytest.mark.parametrize("keep", ["hidden", "topk"])
def test_what_decoding_computed_serves_training_without_a_second_pass(here, tmp_path, monkeypatch, keep):
    """From states the losses are those of the live teacher; of likeliest ids a capture asks about what is measured."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "student", layers=1, seed=3)
    asked = watched_rows(monkeypatch)
    generate = GENERATE.replace("80", f"80, keep: {keep}")
    exact = "hidden, max_kl_nats: 0.000001" if keep == "hidden" else keep
    stages = f"[{{{generate}}}, {{{CAPTURE.replace('hidden', exact)}}}, {TRAINING}]"
    parts = {"student": "{model: student}", "teacher": "{model: teacher, dtype: float32}"}
    places.write(tmp_path, **parts, stages=stages)
    run(tmp_path / "r.yaml", ["distill.precision=float32"], console=QUIET)
    facts = json.loads((tmp_path / "runs/r/stages/capture/manifest.json").read_text())["facts"]
    assert facts["signal"] == keep
    assert len(set(asked)) == (0 if keep == "hidden" else facts["heldout_rows"])
    if keep == "hidden":
        places.recipe(tmp_path, **parts, stages=f"[{{{GENERATE}}}, {TRAINING}]")
        run(tmp_path / "r.yaml", ["runs=live", "distill.precision=float32"], console=QUIET)
        assert losses(tmp_path, "runs") == pytest.approx(losses(tmp_path, "live"), abs=1e-4)
    assert figures(tmp_path, "runs").keys() == figures(here, "runs").keys()


def watched_rows(monkeypatch) -> list[str]:
    """The names of the rows that a teacher on disk is asked about."""
    asked: list[str] = []
    one, several = StoredTeacher.signal, StoredTeacher.signals
    monkeypatch.setattr(
        StoredTeacher, "signal", lambda self, batch: asked.extend(batch.row_ids) or one(self, batch)
    )
    monkeypatch.setattr(
        StoredTeacher, "signals", lambda self, rows, pad_id: asked.extend(row.id for row in rows) or several(self, rows, pad_id)
    )  # fmt: skip
    return asked
