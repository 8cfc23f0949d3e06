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
from potstill.recipe.recipe import expand, parse_recipe
from potstill.recipe.yaml import load_value

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTES.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def _prose(page):
    """The page without its code, in which neither a link nor a heading is one."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page):
    """The anchors that GitHub gives to the headings of a page; one that is there already gets a number."""
    anchors = []
    for heading in re.findall(r"^#+ +(.+?) *$", _prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        again = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", one) is not None for one in anchors)
        anchors.append(f"{anchor}-{again}" if again else anchor)
    return anchors


def test_anchors_are_made_as_github_makes_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# JSD and its β\n## `data.mix`, a [table](b.md)\n```\n# no heading\n```\n## Rows\n### Rows\n## The student's card\n",
        encoding="utf-8",
    )
    assert _anchors(page) == ["jsd-and-its-β", "datamix-a-table", "rows", "rows-1", "the-students-card"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_leads_to_a_file_and_a_heading_of_it(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s:]+)\)", re.sub(r"`[^`\n]*`", "", _prose(page))):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, snippet in enumerate(
        re.findall(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_every_part_of_a_recipe_in_the_docs_is_one(snippet):
    written = load_value(snippet, "the page")
    stages = {"stages": _named(written)} if isinstance(written, list) else written
    data = {"train": "rows.jsonl"} | stages.get("data", {})
    expand(parse_recipe({"teacher": {"model": "a/b"}, "student": {"model": "a/c"}} | stages | {"data": data}))


def _named(stages):
    """The stages of a list of examples, each under a name of its own."""
    return [
        {verb: options | {"name": f"{verb}-{number}"}}
        for number, stage in enumerate(stages)
        for verb, options in stage.items()
    ]


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
