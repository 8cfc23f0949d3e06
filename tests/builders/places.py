"""Folders with a recipe, rows and tiny models in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builders.chats import write_lines
from builders.tiny import save_tiny
from potstill.check import CheckReport, check
from potstill.console import Console
from potstill.data.answers import Written
from potstill.runs import setup
from potstill.stages import _rows
from potstill.stages._context import Context, Setup, State
from potstill.stages._rows import ANSWERS
from potstill.store.artifacts import Artifact, Store
from potstill.types import Example

RECIPE = {
    "teacher": "{model: teacher}", "student": "{from_teacher: {keep_layers: 1, by: uniform}}",
    "data": "{train: rows.jsonl}", "stages": "[{distill: {steps: 2}}]",
}  # fmt: skip


def prompts(count: int = 24) -> list[dict[str, Any]]:
    return [{"id": f"p{i}", "prompt": f"w{20 + i} w{(7 * i) % 90 + 12}"} for i in range(count)]


def answered(count: int = 24) -> list[dict[str, Any]]:
    return [row | {"response": f"w{30 + i} w{(5 * i) % 90 + 12}"} for i, row in enumerate(prompts(count))]


def recipe(place: Path, **changes: str) -> None:
    """Write the recipe `r.yaml`; `changes` replace its sections."""
    (place / "r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in (RECIPE | changes).items()))


def write(place: Path, rows: Iterable[dict[str, Any]] | None = None, **changes: str) -> Path:
    """The rows and the recipe `r.yaml`; a teacher is made where there is none."""
    if not (place / "teacher").exists():
        save_tiny(place / "teacher")
    rows = answered() if rows is None else rows
    write_lines(place / "rows.jsonl", *rows)
    recipe(place, **changes)
    return place


def read(place: Path, recipe: str = "r.yaml") -> Setup:
    """What the recipe names, as `check` and `run` read it."""
    return setup.set_up(setup.open_recipe(place / recipe))


def checked(place: Path, recipe: str = "r.yaml") -> CheckReport:
    """What a check says without loading a weight."""
    return check(place / recipe, proofs=False, console=Console(quiet=True))


@dataclass(frozen=True)
class Answered:
    """A run as if its teacher had written these answers."""

    state: State
    context: Context

    def examples(self, split: str) -> list[Example]:
        return list(_rows.examples(self.state, self.context, split).examples)  # type: ignore[arg-type]

    def funnel(self, split: str = "train") -> Mapping[str, int]:
        return _rows.examples(self.state, self.context, split).funnel  # type: ignore[arg-type]


def after_generate(place: Path, written: Iterable[Written]) -> Answered:
    """The run of `r.yaml`, as if the teacher had written this."""
    lines = [
        {"row_id": w.row_id, "sample": w.sample, "ids": w.ids, "text": w.text, "finish": w.finish}
        for w in written
    ]
    (place / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    context = Context(read(place), Store(place / "runs/.store"), Console(quiet=True), seed=0)
    return Answered(State(answers=Artifact(place, {"key": "written"})), context)


def summary(place: Path, name: str = "r") -> dict[str, Any]:
    """The figures of a run."""
    return json.loads((place / f"runs/{name}/summary.json").read_text())


def steps(place: Path, stage: str) -> list[dict[str, Any]]:
    """What a training stage of the run `r` wrote of its steps."""
    events = (place / f"runs/r/stages/{stage}/metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, events) if e["event"] == "step"]
