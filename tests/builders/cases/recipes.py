"""Mutated recipes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from builders.cases.place import LARGE, SMALL, Case, write_recipe
from builders.mutants import edited, mutate, odd, short, spoiled

PATHS = (
    "seed",
    "distill.temperature",
    "distill.divergence",
    "data.train",
    "stages",
    "teacher.model",
    "data",
    "distill",
)


def recipe_case(place: Path, dice: random.Random) -> Case:
    """A recipe, its text, or an override."""
    raw = dice.choice([SMALL, LARGE, LARGE])
    command, file = ["check", "--quick", "r.yaml", *["--json"] * (dice.random() < 0.3)], place / "r.yaml"
    kind = dice.choice(["values", "values", "values", "text", "bytes", "override"])
    if kind == "values":
        done = []
        for _ in range(dice.choice([1, 1, 2])):
            raw, what = mutate(raw, dice)
            done.append(what)
        write = dice.choice([json.dumps, lambda value: yaml.safe_dump(value, allow_unicode=True)])
        file.write_text(write(raw), errors="surrogatepass")
        return Case([command], "; ".join(done))
    write_recipe(place, raw)
    if kind == "text":
        file.write_text(edited(file.read_text(), dice), errors="surrogatepass")
        return Case([command], f"text: {short(file.read_bytes())}")
    if kind == "bytes":
        changed, what = spoiled(file.read_bytes(), dice)
        file.write_bytes(changed)
        return Case([command], what)
    path = dice.choice(PATHS)
    override = f"{path}={json.dumps(odd(dice))}" if dice.random() < 0.6 else edited(f"{path}=[1, a]", dice)
    return Case([[*command, override]], f"override {short(override)}")


EXTREMES = (10**400, -(10**400), 2**63, 2**63 - 1, 10**18, 1e308, 5e-324, 0, -1, 0.999999)


def number_case(place: Path, dice: random.Random) -> Case:
    """A recipe in which one number is as large, small or odd as numbers are."""
    recipe = copy.deepcopy(LARGE)
    path, value = dice.choice(list(_numbers(recipe))), dice.choice(EXTREMES)
    node: Any = recipe
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    write_recipe(place, recipe)
    return Case([["check", "--quick", "r.yaml"]], f"{path}: {short(value)}")


def _numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all numbers."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _numbers(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path
