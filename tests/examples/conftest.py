"""The arguments that every example script takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders.chats import write_lines
from builders.tiny import save_tiny


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Teacher, student (another model), rows and output."""
    save_tiny(tmp_path / "teacher", seed=1)
    save_tiny(tmp_path / "student", layers=1, seed=2)
    rows = [
        {"prompt": f"w{20 + i}", "response": " ".join(f"w{30 + i + j}" for j in range(1 + i % 4))}
        for i in range(16)
    ]
    write_lines(tmp_path / "rows.jsonl", *rows)
    return [str(tmp_path / name) for name in ("teacher", "student", "rows.jsonl", "out")]
