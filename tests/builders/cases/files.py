"""Mutated files of rows."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from builders import tables
from builders.cases.place import SHAPES, SMALL, Case, empty, rows, write_recipe
from builders.mutants import mutate, spoiled

FILES = (
    "rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.jsonl.gz", "rows.parquet", "rows.arrow", "stream.arrow", "saved",
    "saved", "rows.parquet", "rows.arrow",
)  # fmt: skip


def data_case(place: Path, dice: random.Random) -> Case:
    """A file of rows in one of the formats, of which some values or bytes changed."""
    shape, name = dice.choice(list(SHAPES)), dice.choice(FILES)
    content: Any = rows(shape)
    what = ""
    if dice.random() < 0.55:
        for _ in range(dice.choice([1, 1, 3])):
            content, done = mutate(content, dice)
            what += f"{done}; "
    path = empty(place) / name
    what = f"{shape} in {name}: {what}"
    what += write_rows(path, content, rows(shape), dice)
    if path.is_dir():
        path = dice.choice(sorted(p for p in path.iterdir() if p.is_file()))
        if path.suffix == ".json" and dice.random() < 0.7:
            changed, done = mutate(json.loads(path.read_bytes()), dice)
            path.write_text(json.dumps(changed))
            what += f"{path.name}: {done}; "
    elif what.endswith(": ") or dice.random() < 0.2:
        changed, done = spoiled(path.read_bytes(), dice, within=dice.choice([None, 64]))
        path.write_bytes(changed)
        what += done
    write_data_recipe(place, name, on_bad_row=dice.choice(["error", "skip"]))
    commands = [["check", "--quick", "r.yaml", *["--json"] * (dice.random() < 0.3)]]
    return Case(commands + [["run", "r.yaml"]] * (dice.random() < 0.1), what)


def write_rows(path: Path, content: Any, whole: Any = None, dice: random.Random | None = None) -> str:
    """Write rows; with dice a table may get an odd column. Says what else was changed."""
    if path.suffix in (".parquet", ".arrow") or path.name == "saved":
        return tables.write(path, content, whole, dice)
    path.write_bytes(_as_text(path.name, content))
    return ""


def write_data_recipe(place: Path, name: str, **options: Any) -> None:
    data = {"train": f"case/{name}", "template": {"file": "template.jinja"}, **options}
    write_recipe(place, SMALL | {"data": data})


def _as_text(name: str, content: Any) -> bytes:
    lines = content if isinstance(content, list) else [content]
    if ".csv" in name or ".tsv" in name:
        return tables.as_csv(
            [line if isinstance(line, dict) else {"x": line} for line in lines],
            "\t" if ".tsv" in name else ",",
        )
    text = (
        json.dumps(content) if name.endswith(".json") else "".join(json.dumps(line) + "\n" for line in lines)
    )
    return gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
