"""Runs of the product in several processes, and what they leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.chats import write_lines
from builders.tiny import save_tiny

# Checkpoints follow a validation, which leaves a student in parts partly gathered. A row is a micro-batch of its own: matrix products have the same shapes however many processes share them.
RECIPE = """\
name: many
teacher: {model: teacher, dtype: float32}
student: {from_teacher: {keep_layers: 2}}
data: {train: rows.jsonl}
stages:
  - generate: {max_new_tokens: 12, batch_rows: 4, sampling_temperature: 1.0,
               filters: [{truncated: {action: count}}, {leakage: {action: count}}]}
  - distill: {tokens_per_step: 40, micro_batch_tokens: 8, steps: 10, learning_rate: 0.001, validate_every: 2,
              checkpoint_every: 2, precision: float32}
  - evaluate: {samples: 8, resamples: 100, max_new_tokens: 8}
"""
SPEED = "per_second"


def prepare(folder: Path, *, answered: bool = False) -> Path:
    """A teacher, ragged prompts, which may be `answered`, and a recipe."""
    save_tiny(folder / "teacher", layers=3)
    rows = [
        {"id": f"p{i}", "prompt": " ".join(f"w{12 + (7 * i + k) % 90}" for k in range(2 + i % 9))}
        | ({"response": " ".join(f"w{12 + (5 * i + k) % 90}" for k in range(1 + i % 6))} if answered else {})
        for i in range(60)
    ]
    write_lines(folder / "rows.jsonl", *rows)
    (folder / "many.yaml").write_text(RECIPE)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, with loopback; its processes share no GPU."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "potstill", *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finished(folder: Path, *arguments: str) -> Left:
    """Run the recipe to its end."""
    process = start(folder, "run", *arguments)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return Left(folder / "runs/many")


def stopped(folder: Path, *arguments: str, number: int = signal.SIGTERM) -> tuple[int, str]:
    """Start the recipe, stop it in the middle of its training, and return exit code and words."""
    process = start(folder, "run", *arguments)
    while process.poll() is None and not trained(folder):
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def trained(folder: Path, steps: int = 3) -> bool:
    """Whether a training under way has made so many steps."""
    logs = list(folder.glob("runs/.store/.building-train-*/metrics.jsonl"))
    return bool(logs) and logs[0].read_text().count('"event": "step"') >= steps


@dataclass(frozen=True)
class Left:
    """What a run left in its folder."""

    path: Path

    @property
    def answers(self) -> str:
        return (self.path / "stages/generate/answers.jsonl").read_text()

    @property
    def steps(self) -> list[Mapping[str, Any]]:
        lines = (self.path / "stages/distill/metrics.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == "step"]

    @property
    def validations(self) -> list[float]:
        lines = (self.path / "stages/distill/metrics.jsonl").read_text().splitlines()
        return [event["loss"] for event in map(json.loads, lines) if event["event"] == "validation"]

    @property
    def figures(self) -> dict[str, float]:
        stored = json.loads((self.path / "stages/evaluate/evaluation.json").read_text())["models"]
        return {
            f"{role} {key}": figure["value"]
            for role, table in stored.items()
            for key, figure in table.items()
            if figure.get("value") is not None and SPEED not in key
        }
