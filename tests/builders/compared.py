"""Finished runs to compare: folders with a record whose numbers were invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from builders import made_up
from potstill.evaluate import by_prompt, stats
from potstill.recipe import yaml
from potstill.report import record
from potstill.report.content import Content
from potstill.report.record import Record
from potstill.store.folder import RunDir
from potstill.types import Figure

PROMPTS = np.random.default_rng(0).uniform(0.2, 0.8, 80)
KEYS = ("forward_kl", "agreement", "ppl")


def run(
    place: Path,
    name: str,
    seed: int = 0,
    shift: float = 0.0,
    *,
    rate: float = 0.001,
    on: str = "answers",
    kept: bool = True,
    **changes: Any,
) -> Path:
    """A finished run whose figures are PROMPTS + shift; `changes` replace blocks of its summary."""
    folder = RunDir(place / name)
    folder.path.mkdir()
    summary = made_up.summary() | {"name": name, "seed": seed, "behaviour": {}} | changes
    if summary["after"]:
        summary["after"] = {"n": 80}
        prompts = {}
        for key in KEYS:
            about = Figure(key, **made_up.FIGURES[key])
            values = (PROMPTS + shift).tolist()
            figure = stats.ratio(values, [1.0] * 80, figure=about, transform=np.exp if key == "ppl" else None)
            summary["after"][key] = {k: getattr(figure, k) for k in ("value", "low", "high", "n")}
            prompts[key] = by_prompt.stored(figure, on)
    raw = {
        "version": 1, "name": name, "seed": seed, "runs": str(place), "teacher": {"model": "t"},
        "student": {"model": "s"}, "data": {"train": ["rows.jsonl"]},
        "stages": ["generate", {"distill": {"name": "heal", "learning_rate": rate}}, "evaluate"],
    }  # fmt: skip
    recipe = yaml.to_yaml(raw)
    (folder.path / "recipe.yaml").write_text(recipe)
    content = Content(summary) if summary["after"] else None
    record.write(folder, Record(summary, recipe, True, content, prompts if kept and content else {}))
    return folder.path


def study(place: Path) -> list[Path]:
    """Two recipes with seeds 1, 2, 3, the second 0.1 below the first."""
    spread = {1: -0.02, 2: 0.0, 3: 0.02}
    slow = [run(place, f"slow-{seed}", seed, spread[seed], rate=0.001) for seed in spread]
    fast = [run(place, f"fast-{seed}", seed, spread[seed] - 0.1, rate=0.01) for seed in (3, 1, 2)]
    return [*slow, *fast]
