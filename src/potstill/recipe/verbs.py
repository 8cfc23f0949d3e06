"""The verbs of recipes: one file each in `potstill/stages`, here without importing any."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent.parent / "stages"


def verbs() -> tuple[str, ...]:
    """The verbs of all stages in alphabetical order."""
    return tuple(sorted(file.stem for file in FOLDER.glob("[!_]*.py")))
