"""What the outside world gives is printed harmlessly, and what cannot be printed ends no work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill

EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202edlrow"
RAW = ("\x1b", "\x07", "\x9b", "\u202e")


@contextmanager
def gone_reader() -> Iterator[int]:
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@contextmanager
def closed_terminal() -> Iterator[int]:
    """A terminal whose window was closed."""
    window, terminal = os.openpty()
    os.close(window)
    yield terminal
    os.close(terminal)


@pytest.mark.parametrize("broken", [gone_reader, closed_terminal])
def test_a_run_whose_progress_cannot_be_printed_finishes(tmp_path, broken):
    places.write(tmp_path)
    with broken() as stderr:
        done = subprocess.run(
            [sys.executable, "-m", "potstill", "run", "r.yaml"],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=200,
        )
    assert done.returncode == 0
    assert b"student" in done.stdout
    assert (tmp_path / "runs/r/student/model.safetensors").is_file()


def test_a_result_that_cannot_be_printed_is_named(tmp_path):
    with closed_terminal() as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "potstill", "--version"],
            cwd=tmp_path,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=200,
        )
    assert done.returncode == 3
    assert done.stderr.startswith("error: the output cannot be written: [Errno 5]")
    assert "Traceback" not in done.stderr


def unknown_key(place: Path) -> tuple[str, ...]:
    places.write(place)
    (place / "r.yaml").write_text(f"{json.dumps(EVIL)}: 1\n" + (place / "r.yaml").read_text())
    return ("run", "r.yaml")


def missing_file(place: Path) -> tuple[str, ...]:
    places.write(place, data=f"{{train: {json.dumps(EVIL)}}}")
    return ("run", "r.yaml")


def odd_row(place: Path) -> tuple[str, ...]:
    places.write(place)
    write_lines(
        place / "rows.jsonl", {"id": 1, "prompt": "w20", "messages": [{"role": EVIL, "content": "w30"}]}
    )
    return ("run", "r.yaml")


def override(place: Path) -> tuple[str, ...]:
    places.write(place)
    return ("run", "r.yaml", f"distill.{EVIL}=1")


def option(place: Path) -> tuple[str, ...]:
    places.write(place)
    return ("run", "r.yaml", f"--{EVIL}")


def shown_rows(place: Path) -> tuple[str, ...]:
    rows = [row | {"id": f"{EVIL}{row['id']}", "prompt": row["prompt"] + EVIL} for row in places.answered()]
    places.write(place, rows)
    return ("check", "r.yaml", "--quick")


def recipe_name(place: Path) -> tuple[str, ...]:
    return ("check", f"{EVIL}.yaml")


CASES = [unknown_key, missing_file, odd_row, override, option, shown_rows, recipe_name]


@pytest.mark.parametrize("case", CASES)
def test_controls_in_keys_names_and_rows_reach_no_terminal(tmp_path, case):
    done = potstill(*case(tmp_path), cwd=tmp_path)
    both = done.stdout + done.stderr
    assert "Traceback" not in both
    assert not [control for control in RAW if control in both]
    assert "001B" in both or "x1b" in both or "�" in both  # named, or replaced where rows are read
