"""A folder with a recipe whose teacher is a scripted endpoint, and a tiny student."""

from __future__ import annotations

from pathlib import Path

from builders import places
from builders.chats import write_lines
from builders.endpoint import Endpoint
from builders.tiny import save_tiny

KEY, CANARY = "POTSTILL_TEST_KEY", "canary-7f3a91"


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
