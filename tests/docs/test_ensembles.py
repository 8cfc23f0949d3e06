"""docs/ensembles.md shows what the averages are."""

from __future__ import annotations

from pathlib import Path

from builders import scripts

DOCS = Path(__file__).parents[2] / "docs"


def test_picture_and_table_are_those_of_the_code():
    script = scripts.load("docs/make_ensembles.py")
    assert script.table() in (DOCS / "ensembles.md").read_text(encoding="utf-8")
    assert script.picture() == script.PICTURE.read_text(encoding="utf-8")
