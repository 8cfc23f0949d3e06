"""The page on depths says what its kept figures say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def make_depth() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_depth", DOCS / "make_depth.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_and_picture_are_those_of_the_kept_figures(make_depth):
    rows = json.loads((DOCS / "depth.json").read_text(encoding="utf-8"))
    assert make_depth.table(rows) in (DOCS / "depth.md").read_text(encoding="utf-8")
    assert make_depth.picture(rows) == (DOCS / "figures/depth.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(make_depth.picture(rows))


def test_the_table_has_a_row_for_each_depth_of_the_quickstart_s_range(make_depth):
    rows = json.loads((DOCS / "depth.json").read_text(encoding="utf-8"))
    assert [row["layers"] for row in rows] == [20, 22, 24, 26]
