"""A folder with a recipe whose teacher is a scripted endpoint, and a tiny student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builders import places
from builders.chats import write_lines
from builders.cli import Done, potstill
from builders.endpoint import Act, Endpoint, Sent, answer
from builders.tiny import save_tiny

KEY, CANARY = "POTSTILL_TEST_KEY", "canary-7f3a91"
SMALL = ["generate.max_new_tokens=8", "finetune.steps=2", "evaluate.samples=4"]


def write(
    place: Path,
    endpoint: Endpoint,
    *,
    rows: int = 40,
    more: str = "",
    teacher: str = "",
    price: str = "input: 1, output: 10",
) -> Path:
    """The five lines of a recipe and its rows; `more` are further lines."""
    if not (place / "student").exists():
        save_tiny(place / "student")
    write_lines(place / "rows.jsonl", *places.prompts(rows))
    (place / "r.yaml").write_text(
        f"teacher: {{endpoint: '{endpoint.url}', model: big, key_env: {KEY}, price: {{{price}}}{teacher}}}\n"
        "student: {model: student}\n"
        f"data: {{train: rows.jsonl}}\n{more}"
    )
    return place


def told(sent: Sent, times: int) -> Act:
    """A script: the words of the prompt from behind."""
    return answer(" ".join(reversed(sent.prompt.split())))


def run(place: Path, *more: str) -> Done:
    """Run the recipe with short answers and a short training."""
    return potstill("run", "r.yaml", *SMALL, *more, cwd=place)


def lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def everything_in(place: Path) -> bytes:
    """All bytes below a folder, each file once."""
    return b"".join(p.read_bytes() for p in place.rglob("*") if p.is_file() and not p.is_symlink())
