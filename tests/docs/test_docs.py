"""The docs fail the tests when they drift."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from potstill import DistillationLoss, divergences
from potstill.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "NOTES.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def figures():
    spec = importlib.util.spec_from_file_location("make_figures", ROOT / "docs" / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_figures_and_tables_are_what_the_code_makes():
    for path, text in figures().made().items():
        if path.suffix == ".md":
            assert path.read_text(encoding="utf-8") == text
        else:
            # Coordinates of an optimised curve may differ in the last digit between processors.
            assert len(path.read_text(encoding="utf-8")) == pytest.approx(len(text), rel=0.01)


def test_every_divergence_is_on_the_page():
    page = (ROOT / "docs/losses.md").read_text(encoding="utf-8")
    assert [name for name in divergences.names() if f"`{name}`" not in page] == []


def test_the_worked_numbers_are_right():
    page = (ROOT / "docs/losses.md").read_text(encoding="utf-8")
    student, teacher = torch.ones(1, 1, 3), torch.tensor([[[2.0, 1.0, 0.0]]])
    for name in ("forward_kl", "reverse_kl", "soft_cross_entropy"):
        value = DistillationLoss(name).from_logits(student, teacher, torch.ones(1, 1)).mean.item()
        assert f"{value:.6f}" in page
    for t in (1.0, 4.0):
        told = ", ".join(f"{value:.4f}" for value in figures().softened(t))
        assert f"({told}) at T = {t:g}" in page


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
    told = CliRunner().invoke(app, ["--help"]).output
    assert commands
    assert [name for name in commands if name not in told] == []
    assert len(text.splitlines()) < 150


def test_every_command_says_what_it_does():
    for command in (
        "run",
        "check",
        "report",
        "status",
        "init",
        "schema",
        "generate",
        "distill",
        "finetune",
        "evaluate",
    ):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_the_project_speaks_of_itself_alone():
    words = re.compile(r"/work/|/tmp/potstill|\bW-\d\d\b|field case", re.IGNORECASE)
    files = [
        p
        for folder in ("src", "docs", "examples")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".py", ".md", ".yaml")
    ]
    assert [str(p) for p in [*files, *PAGES] if words.search(p.read_text(encoding="utf-8"))] == []
