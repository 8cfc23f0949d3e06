"""The commands and their help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from builders.cli import potstill
from potstill.errors import RecipeError
from potstill.recipe.verbs import verbs
from potstill.runs import run as runs

HELP = """
import sys
from potstill.cli import main
try:
    main(["--help"])
finally:
    assert not {"torch", "pydantic"} & set(sys.modules)
"""


def test_help_opens_without_torch_and_pydantic_and_lists_every_verb():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    commands = {line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()}
    assert commands == {"run", *verbs(), "check", "report", "status", "init", "schema", "store"}


@pytest.mark.parametrize("verb", verbs())
def test_a_verb_is_a_command_that_stops_after_its_last_stage(tmp_path, monkeypatch, verb):
    calls = []

    def run(recipe, overrides, *, until, console):
        calls.append((str(recipe), list(overrides), until))
        raise RecipeError("stopped.")

    monkeypatch.setattr(runs, "run", run)
    assert potstill(verb, "r.yaml", "seed=1", cwd=tmp_path).returncode == 2
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 2
    assert calls == [("r.yaml", ["seed=1"], verb), ("r.yaml", [], None)]
