"""The docs fail the tests when they drift."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from builders import scripts
from potstill.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTES.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_names_commands_that_exist_and_stays_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = set(re.findall(r"^potstill (\w+)", text, re.MULTILINE)) | set(
        re.findall(r"`potstill (\w+)", text)
    )
    assert commands
    assert commands <= set(COMMANDS)
    assert len(text.splitlines()) < 150


COMMANDS = get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name):
    help = inspect.cleandoc(COMMANDS[name].help).splitlines()[0]
    assert re.fullmatch(r"[A-Z].{14,}\.|.{14,}[;:]", help), f"{name}: {help!r}"
    result = CliRunner().invoke(app, [name, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert f"{name} [OPTIONS]" in result.output
    assert help in result.output


def test_every_command_is_listed_in_the_help():
    listed = CliRunner().invoke(app, ["--help"]).output
    assert [name for name in COMMANDS if not re.search(rf"^\W*{name}\s", listed, re.MULTILINE)] == []


def test_the_project_speaks_of_itself_alone():
    words = re.compile(r"/work/|/tmp/potstill|\bW-\d\d\b|field case", re.IGNORECASE)
    files = [
        p
        for folder in ("src", "docs", "examples")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".py", ".md", ".yaml")
    ]
    assert [str(p) for p in [*files, *PAGES] if words.search(p.read_text(encoding="utf-8"))] == []


def test_the_tree_in_the_architecture_page_is_todays():
    make_tree = scripts.load("docs/make_tree.py")
    assert make_tree.page() == make_tree.PAGE.read_text(encoding="utf-8"), "run python docs/make_tree.py"


def test_every_file_of_the_strangers_walk_exists():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    walk = text.partition("## A stranger's walk")[2].partition("\n## ")[0]
    files = re.findall(r"`([a-z_/]+\.py)`", walk)
    assert len(files) >= 15
    assert [file for file in files if not (ROOT / "src/potstill" / file).is_file()] == []
