"""Mutated files of finished runs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from builders.cases.place import SMALL, STAGES, Case, empty, write_recipe
from builders.cli import potstill
from builders.mutants import edited, mutate, spoiled


def run_case(place: Path, dice: random.Random) -> Case:
    """A file of a finished run, or of what is kept of its stages."""
    whole = place / "whole-run"
    if not whole.exists():
        empty(place)
        write_recipe(
            place, SMALL | {"stages": [{"generate": {"max_new_tokens": 4, "filters": None}}, *STAGES]}
        )
        done = potstill("run", "r.yaml", cwd=place)
        assert done.returncode == 0, done.stderr
        (place / "runs").rename(whole)
        shutil.copy(place / "r.yaml", whole / "r.yaml")
    empty(place)
    shutil.copytree(whole, place / "runs", symlinks=True)
    shutil.move(place / "runs/r.yaml", place / "r.yaml")
    files = [file for file in sorted((place / "runs").rglob("*")) if file.is_file() and file.stat().st_size]
    path = dice.choice([file for file in files if file.suffix != ".safetensors"])
    if dice.random() < 0.3:
        path = place / "runs/r" / dice.choice(["run.json", "summary.json"])
    text = path.read_text()
    if path.suffix == ".json" and dice.random() < 0.8:
        changed, what = mutate(json.loads(text), dice)
        path.write_text(json.dumps(changed))
    elif path.suffix == ".jsonl" and dice.random() < 0.8:
        lines = [json.loads(line) for line in text.splitlines()]
        changed, what = mutate(lines, dice)
        path.write_text(
            "".join(json.dumps(line) + "\n" for line in (changed if isinstance(changed, list) else [changed]))
        )
    elif dice.random() < 0.5:
        path.write_text(edited(text, dice), errors="surrogatepass")
        what = "edited"
    else:
        changed, what = spoiled(text.encode(), dice)
        path.write_bytes(changed)
    commands = [
        ["status", "runs/r"],
        ["report", "runs/r"],
        ["status", "runs/r", "--json"],
        ["run", "r.yaml"],
        ["run", "runs/r"],
    ]
    return Case(commands[dice.randrange(2) :], f"{path.relative_to(place)}: {what}")
