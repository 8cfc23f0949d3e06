"""A run that is killed at any moment, again and again, ends where the undisturbed run ends."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builders.chats import write_lines
from builders.tiny import save_tiny

RECIPE = """\
name: chaos
teacher: {model: teacher}
student: {from_teacher: {keep_layers: 2}}
data: {train: rows.jsonl}
stages:
  - generate: {filters: null, max_new_tokens: 24, batch_rows: 4}
  - distill: {tokens_per_step: 64, steps: 60, learning_rate: 0.003, validate_every: 5, checkpoint_every: 3}
  - finetune: {tokens_per_step: 64, steps: 30, validate_every: 5, checkpoint_every: 3}
  - evaluate: {samples: 16, resamples: 200}
"""


def prepare(folder: Path) -> Path:
    save_tiny(folder / "teacher", layers=4)
    rows = [
        {"id": f"p{i}", "prompt": f"w{12 + i % 50} w{20 + i % 90} w{(i * 7) % 90 + 12}"} for i in range(96)
    ]
    write_lines(folder / "rows.jsonl", *rows)
    (folder / "chaos.yaml").write_text(RECIPE)
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "potstill", "run", "chaos.yaml"],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def result(folder: Path) -> dict[str, str]:
    """Hashes of what a run leaves: answers, weights, figures."""
    stages = folder / "runs/chaos/stages"
    names = (
        "generate/answers.jsonl", "distill/student/model.safetensors", "finetune/student/model.safetensors",
        "evaluate/evaluation.json", "evaluate/samples.jsonl", "evaluate/prompts.json",
    )  # fmt: skip
    return {name: hashlib.sha256((stages / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[dict[str, str], float]:
    folder = prepare(tmp_path_factory.mktemp("calm"))
    began = time.monotonic()
    process = start(folder)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    return result(folder), time.monotonic() - began


def survive(folder: Path, undisturbed: tuple[dict[str, str], float], kills: int, seed: int) -> None:
    """Kill the run `kills` times at random moments, starting it afresh whenever it got through."""
    wanted, length = undisturbed
    dice = random.Random(seed)
    done = 0
    while done < kills:
        process = start(folder)
        try:
            process.wait(timeout=dice.uniform(0.3, 1.0) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
        else:
            said = process.stderr.read().decode()
            assert process.returncode == 0, said
            assert result(folder) == wanted
            shutil.rmtree(folder / "runs")
        for stream in (process.stdout, process.stderr):
            stream.close()
    process = start(folder)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    assert "Traceback" not in said.decode()
    assert result(folder) == wanted


def test_a_run_killed_five_times_gives_the_undisturbed_result(undisturbed, tmp_path):
    survive(prepare(tmp_path), undisturbed, kills=5, seed=1)


@pytest.mark.prove
def test_a_run_killed_two_hundred_times_gives_the_undisturbed_result(undisturbed, tmp_path):
    survive(prepare(tmp_path), undisturbed, kills=200, seed=2)
