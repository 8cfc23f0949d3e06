"""docs/recipe.md says what the code reads and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from builders import places, scripts
from builders.cli import potstill
from potstill import errors
from potstill.data.shapes import COLUMNS, convert
from potstill.recipe.reference import FAMILIES, entries, explain
from potstill.recipe.specs import Format
from potstill.report import compare_files
from potstill.report.summary import TRAIN

SCRIPT = scripts.load("docs/make_recipe.py")
PAGE = SCRIPT.PAGE.read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a section's tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    heads = {index + place for index, row in enumerate(cells) if set(row) == {"---"} for place in (-1, 0)}
    return [row for index, row in enumerate(cells) if index not in heads]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_tables_are_todays():
    assert SCRIPT.page() == PAGE, "run python docs/make_recipe.py"


def test_every_key_and_plug_in_is_on_the_page_with_its_default_and_example():
    keys, members = section("Keys"), section("Plug-ins and methods")
    shared = {path for paths in SCRIPT.shared().values() for path in paths[:1] + paths[2:]}
    for path, entry in entries().items():
        home, _, name = path.rpartition(".")
        if entry.keys and not home:
            continue
        if home.split(".")[0] in (*FAMILIES, "methods"):
            assert home.count(".") or f"| `{name}` |" in members
            assert home.count(".") == 0 or f"`{name}: {entry.default}`" in members
        elif path not in shared:
            default = "required" if entry.required else SCRIPT.code(entry.default)
            line = ("", f"`{name}`", SCRIPT.cell(entry.type), default, SCRIPT.cell(entry.meaning))
            assert " | ".join(line).strip() in keys, path


def test_the_entry_at_the_head_of_the_page_is_what_the_command_prints():
    assert f"$ potstill explain distill.temperature\n{explain('distill.temperature').text()}\n```" in PAGE


def test_every_row_format_is_shown_with_a_row_that_is_read():
    shown = {names(cells[0])[0]: json.loads(names(cells[1])[0]) for cells in rows(section("Rows"))}
    assert set(shown) == set(COLUMNS) == set(get_args(Format)) - {"auto"}
    for shape, value in shown.items():
        row = convert(shape, value, "page")
        assert row.text or row.gold
        assert not row.extra


def test_every_exit_code_of_an_error_is_listed_beside_its_code():
    listed = {names(cells[0])[0]: names(cells[2]) for cells in rows(section("Exit codes"))}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in kinds:
        if kind is not errors.Interrupted:
            assert kind.code in listed[str(kind.exit_code)]
    for number in (130, 141, 143, 0, 4):
        assert str(number) in listed
    error = errors.Interrupted("stopped.", signal_number=2)
    assert error.code in listed[str(error.exit_code)]
    keys = section("Exit codes").partition('{"error": {')[2].partition("}")[0]
    assert [key.strip('"') for key in keys.split(", ")] == list(error.as_dict())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run with everything that a summary can hold."""
    place = tmp_path_factory.mktemp("recipe")
    stages = (
        "[{distill: {steps: 2, ce_weight: 0.5}}, {finetune: {steps: 2}}, {control: {steps: 2}}, "
        "{evaluate: {metrics: [likelihood, rouge_l, behaviour, speed], resamples: 100, max_new_tokens: 4}}]"
    )
    places.write(place, stages=stages)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "runs/r"


def test_the_keys_of_the_summary_are_those_that_a_run_writes(finished):
    summary = json.loads((finished / "summary.json").read_text())
    shown: dict[str, Any] = {names(cells[0])[0]: names(cells[1]) for cells in rows(section("summary.json"))}
    assert list(shown) == [key for key in summary if not key.endswith("_reason")]

    def written(block: Any) -> set[str]:
        return {key for key in block if not key.endswith("_reason")}

    assert set(shown["teacher"]) == written(summary["teacher"])
    assert {*shown["teacher"], *shown["student"]} == written(summary["student"])
    assert set(shown["train"]) == written(summary["train"]) >= set(TRAIN)
    assert set(shown["by_stage"]) == written(summary["by_stage"][0])
    assert set(shown["made"]) == written(summary["made"])
    assert {"train", "validation", "heldout"} == written(summary["data"])
    assert set(shown["figures"]) == written(summary["figures"]["forward_kl"])
    assert set(shown["differences"]) == written(summary["differences"])
    assert set(shown["retention"]) >= written(summary["retention"]["rouge_l"])


def test_the_keys_of_the_metrics_are_those_that_training_writes(finished):
    written: dict[str, set[str]] = {"step": set(), "validation": set()}
    for file in finished.glob("stages/*/metrics.jsonl"):
        for line in file.read_text().splitlines():
            event = json.loads(line)
            written[event["event"]] |= set(event)
    shown: dict[str, set[str]] = {"step": set(), "validation": set()}
    for keys, kinds, _ in rows(section("metrics.jsonl")):
        for kind in shown if kinds == "all" else kinds.split(", "):
            shown[kind] |= set(names(keys))
    assert shown["validation"] == written["validation"]
    assert shown["step"] == written["step"]


def test_the_columns_of_a_comparison_are_those_that_it_writes():
    listed = [name for cells in rows(section("Comparing runs")) for name in names(cells[0])]
    assert listed == list(compare_files.COLUMNS)
