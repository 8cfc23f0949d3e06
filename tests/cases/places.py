"""Folders with a recipe, rows and tiny models in them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from potstill.runs import setup
from potstill.runs.pipeline import Pipeline
from potstill.stages.generate import ANSWERS, Written
from potstill.store.artifacts import Artifact
from tiny import save_tiny

RECIPE = {
    "teacher": "{model: teacher}", "student": "{from_teacher: {keep_layers: 1, by: uniform}}",
    "data": "{train: rows.jsonl}", "stages": "[{distill: {steps: 2}}]",
}  # fmt: skip


def prompts(count: int = 24) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "prompt": f"w{20 + i} w{(7 * i) % 90 + 12}"} for i in range(count)]


def answered(count: int = 24) -> list[dict[str, Any]]:
    return [row | {"response": f"w{30 + i} w{(5 * i) % 90 + 12}"} for i, row in enumerate(prompts(count))]


def write(place: Path, rows: Iterable[dict[str, Any]] | None = None, **recipe: str) -> Path:
    """The rows and the recipe `r.yaml`; a teacher is made where there is none."""
    if not (place / "teacher").exists():
        save_tiny(place / "teacher")
    rows = answered() if rows is None else rows
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (RECIPE | recipe).items()))
    return place


def after_generate(place: Path, written: Iterable[Written]) -> Pipeline:
    """The pipeline of `r.yaml`, as if the teacher had written this."""
    parts = setup.compose(setup.open_recipe(place / "r.yaml"))
    pipeline = Pipeline(parts, None, None, None)  # type: ignore[arg-type]
    lines = [
        {"row_id": w.row_id, "sample": w.sample, "ids": w.ids, "text": w.text, "finish": w.finish}
        for w in written
    ]
    (place / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    pipeline.answers = Artifact(place, {})
    return pipeline


def summary(place: Path, name: str = "r") -> dict[str, Any]:
    """The figures of a run."""
    return json.loads((place / f"runs/{name}/summary.json").read_text())


def steps(place: Path, stage: str) -> list[dict[str, Any]]:
    """What a training stage of the run `r` wrote of its steps."""
    events = (place / f"runs/r/stages/{stage}/metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, events) if e["event"] == "step"]
