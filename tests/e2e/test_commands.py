"""The commands and their help."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from builders.cli import potstill
from potstill.cli import app
from potstill.errors import RecipeError
from potstill.recipe.recipe import parse_recipe
from potstill.recipe.stages import StageSpec
from potstill.recipe.verbs import verbs
from potstill.runs import pipeline
from potstill.runs import run as runs

HELP = """
import sys
from potstill.cli import main
try:
    main(["--help"])
finally:
    assert not {"torch", "pydantic"} & set(sys.modules)
"""


def test_help_opens_without_torch_and_pydantic_and_lists_every_command():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    commands = {line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()}
    assert commands == {
        "run",
        "check",
        "report",
        "status",
        "init",
        "explain",
        "schema",
        "store",
        "capture",
        "cache",
    }


def test_until_names_the_stage_after_which_a_run_stops(tmp_path, monkeypatch):
    calls = []

    def run(recipe, overrides, *, until, console, yes):
        calls.append((str(recipe), list(overrides), until))
        raise RecipeError("stopped.")

    (tmp_path / "r.yaml").write_text("teacher: {model: t}\nstudent: {model: s}\ndata: {train: r.jsonl}\n")
    monkeypatch.setattr(runs, "run", run)
    assert potstill("run", "--until", "distill", "r.yaml", "seed=1", cwd=tmp_path).returncode == 2
    assert potstill("run", "r.yaml", "--until=polish", cwd=tmp_path).returncode == 2
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 2
    assert calls == [("r.yaml", ["seed=1"], "distill"), ("r.yaml", [], "polish"), ("r.yaml", [], None)]


@pytest.mark.parametrize("verb", [verb for verb in verbs() if verb != "capture"])
def test_a_stage_typed_as_a_command_is_answered_with_what_to_type_instead(tmp_path, verb):
    done = potstill(verb, "my recipe.yaml", "seed=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    instead = f"potstill run --until {verb} 'my recipe.yaml' seed=1"
    assert done.stderr == f"error: {verb} is a stage, not a command: type `{instead}`.\n"
    assert f"`potstill run --until {verb} RECIPE`" in potstill(verb, cwd=tmp_path).stderr


@pytest.mark.parametrize(("words", "instead"), [((), "RUN"), (("runs/my run",), "'runs/my run'")])
def test_the_state_of_a_stage_is_shown_by_status(tmp_path, words, instead):
    done = potstill("generate", "--status", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: a run's state is shown by `potstill status {instead}`.\n"


def test_capture_runs_up_to_the_stage_and_a_share_of_it_is_read(tmp_path, monkeypatch):
    """The stage is a command too, since several of it work side by side."""
    calls = []
    monkeypatch.setattr(
        runs, "run", lambda recipe, overrides, **how: calls.append(how["until"]) or _stopped()
    )
    (tmp_path / "r.yaml").write_text("teacher: {model: t}\nstudent: {model: s}\ndata: {train: r.jsonl}\n")
    assert potstill("capture", "r.yaml", cwd=tmp_path).returncode == 2
    assert calls == ["capture"]
    for share in ("0/3", "4/3", "3", "a/b"):
        assert "is no share" in potstill("capture", "r.yaml", "--shard", share, cwd=tmp_path).stderr
    assert "no capture stage" in potstill("capture", "r.yaml", "--shard", "1/3", cwd=tmp_path).stderr


def _stopped() -> None:
    raise RecipeError("stopped.")


def stages(*written: object) -> tuple[StageSpec, ...]:
    inputs = {"teacher": {"model": "t"}, "student": {"model": "s"}, "data": {"train": "r.jsonl"}}
    return parse_recipe({**inputs, "stages": list(written)}).stages


def test_a_run_stops_after_the_last_stage_of_a_name_or_verb():
    four = stages("generate", "distill", {"distill": {"name": "polish"}}, "evaluate")
    for until, count in (("generate", 1), ("distill", 3), ("polish", 3), ("evaluate", 4), (None, 4)):
        assert pipeline.upto(four, until) == four[:count]


@pytest.mark.parametrize(
    ("until", "words"),
    [
        ("polsh", "no polsh stage; did you mean polish? Its stages: distill, polish, finetune."),
        ("evaluate", "no evaluate stage. Add `- evaluate` to its stages."),
    ],
)
def test_a_stage_that_the_recipe_lacks_is_refused_with_those_that_it_has(until, words):
    with pytest.raises(RecipeError, match=re.escape(f"stages: the recipe has {words}")):
        pipeline.require_stage(stages("distill", {"finetune": {"name": "polish"}})[:2], until)


@pytest.mark.parametrize(
    ("words", "message", "path"),
    [
        (("chek",), "No such command 'chek'", "potstill"),
        (("run",), "Missing argument 'RECIPE'", "potstill run"),
        (("status", "--wat"), "No such option: --wat", "potstill status"),
        (("store", "lst"), "No such command 'lst'", "potstill store"),
        (("cache", "import", "rows.jsonl"), "Missing argument 'CACHE'", "potstill cache import"),
    ],
)
def test_with_json_a_mistyped_command_is_an_object_on_stdout_too(tmp_path, words, message, path):
    done = potstill(*words, "--json", cwd=tmp_path)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"], error["exit_code"]) == (2, "recipe", 2)
    assert message in error["message"]
    assert error["fix"] == f"`{path} -h` says what it takes."
    assert message in done.stderr


def _groups(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _groups(inner, (*words, name))


@pytest.mark.parametrize(("words", "command"), list(_groups(get_command(app))))
def test_in_a_narrow_terminal_help_says_all_and_keeps_within_it(words, command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    shown = potstill(*words, "--help", cwd=tmp_path).stdout
    assert max(map(len, shown.splitlines())) <= 60
    assert "[[" not in shown
    told = " ".join(shown.split())
    for name, inner in getattr(command, "commands", {}).items():
        assert f"{name} {' '.join(inner.get_short_help_str(1000).split())}" in told
