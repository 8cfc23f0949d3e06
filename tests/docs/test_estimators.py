"""docs/on-policy-estimators.md prints what the estimators' errors are."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@cache
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_estimators", DOCS / "make_estimators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows() -> list[list[str]]:
    text = (DOCS / "on-policy-estimators.md").read_text(encoding="utf-8")
    block = text.partition(script().BEGIN)[2].partition(script().END)[0]
    lines = [line for line in block.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("ends", [False, True], ids=["fixed length", "end token"])
def test_every_error_of_the_tests_own_toy_lies_in_the_printed_range(ends):
    module = script()
    assert [row[0] for row in rows()] == [one.name for one in module.ESTIMATORS]
    for one, row in zip(module.ESTIMATORS, rows(), strict=True):
        got, printed = module.measured(one, module.SEEDS[0], ends), row[3 + ends]
        if printed == "0":
            assert got < 1e-12, one.name
        else:
            low, high = [float(part) for part in printed.split(" to ")] * (2 if " to " not in printed else 1)
            assert low - 0.005 <= got <= high + 0.005, one.name
