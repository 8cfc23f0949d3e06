"""Rows that a capture does not hold are named before a run, with what was prepared otherwise."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny
from potstill.console import Console
from potstill.errors import CacheMiss
from potstill.runs.run import run

QUIET = Console(quiet=True)
CAPTURE = "[{capture: {batch_tokens: 64, signal: hidden}}]"
TRAINING = "[{distill: {steps: 2, tokens_per_step: 40}}]"
SHORT = 12  # tokens; one row is longer


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Rows with answers of their own, captured as far as they are short."""
    place = tmp_path_factory.mktemp("misses")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        save_tiny(place / "student", layers=1, seed=3)
        rows = places.answered()
        rows += [{"prompt": f"w{60 + i} w7", "response": "w30 " * 20} for i in range(4)]
        places.write(place, rows, stages=CAPTURE, **sides("{model: teacher, dtype: float32}"), data=data())
        run(place / "r.yaml", console=QUIET)
        shutil.copytree((place / "runs/r/stages/capture").resolve(), place / "captured")
    template = (place / "student/chat_template.jinja").read_text()
    (place / "other.jinja").write_text(template.replace("{{ m.content }} ", "w9 {{ m.content }} "))
    shutil.copytree(place / "student", place / "reads_otherwise")
    tokenizer = place / "reads_otherwise/tokenizer.json"
    rules = json.loads(tokenizer.read_text())
    rules["normalizer"] = {"type": "Replace", "pattern": {"String": "w3"}, "content": "w4"}
    tokenizer.write_text(json.dumps(rules))
    return place


def sides(teacher: str = "{cache: captured}", student: str = "student") -> dict[str, str]:
    return {"teacher": teacher, "student": f"{{model: {student}}}"}


def data(**options: object) -> str:
    every = {"train": "rows.jsonl", "max_length": SHORT, "on_bad_row": "skip"} | options
    return json.dumps(every)


def captured_rows(place: Path):
    """What the check without a weight says of the rows."""
    (item,) = (item for item in places.checked(place).items if item.name == "captured rows")
    return item


def test_rows_that_were_captured_are_found_again(here, monkeypatch):
    """Those that are trained on, validated on and measured on."""
    monkeypatch.chdir(here)
    places.recipe(here, **sides(), stages=f"{TRAINING[:-1]}, evaluate]", data=data())
    item = captured_rows(here)
    assert item.passed
    assert (
        item.detail == "in the cache are 13 of 13 training rows, 4 of 4 validation rows, 7 of 7 held-out rows"
    )


MISSES = {
    "template": {"data": {"template": {"file": "other.jinja"}}},
    "student's tokenizer": {"student": "reads_otherwise"},
    f"max_length ({SHORT} then, 64 now)": {"data": {"max_length": 64}},
    "data seed (0 then, 1 now)": {"data": {"seed": 1}},
}


@pytest.mark.parametrize("what", MISSES)
def test_a_row_that_was_prepared_otherwise_is_a_miss_that_says_how(here, monkeypatch, what):
    """Before the run, without a weight, and in it."""
    monkeypatch.chdir(here)
    changed = MISSES[what]
    places.recipe(
        here,
        name="other",
        stages=TRAINING,
        **sides(student=changed.get("student", "student")),
        data=data(**changed.get("data", {})),
    )
    item = captured_rows(here)
    assert not item.passed
    said = item.detail.partition("What differs: ")[2].partition(". ")[0].replace("student's ", "")
    name = what.partition(" (")[0].removeprefix("student's ")
    assert {part for part in ("template", "tokenizer", "max_length", "data seed") if part in said} == {name}
    with pytest.raises(CacheMiss, match="holds no signal of row") as caught:
        run(here / "r.yaml", console=QUIET)
    assert what in item.detail
    assert what in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_check_without_weights_refuses_a_cache_of_other_rows(here, tmp_path):
    for name in ("captured", "student"):
        shutil.copytree(here / name, tmp_path / name)
    rows = [{"prompt": f"w{20 + i} w99", "response": "w98"} for i in range(24)]
    save_tiny(tmp_path / "teacher")
    places.write(tmp_path, rows, **sides(), stages=f"{TRAINING[:-1]}, evaluate]", data=data())
    checked = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert checked.returncode == 4, checked.stderr
    assert "cannot run" in checked.stdout
    said = " ".join(checked.stdout.split())
    assert re.search(r"0 of \d+ training rows, 0 of \d+ validation rows, 0 of \d+ held-out rows", said)
    assert "the rows or their answers differ" in said


def test_validation_and_held_out_rows_that_were_not_captured_fail_the_check(here, tmp_path, monkeypatch):
    """What a run would find out behind its first steps, and an evaluation behind the last."""
    monkeypatch.chdir(here)
    places.recipe(here, **sides(), stages=TRAINING, data=data())
    rows = [json.loads(line) for line in (here / "rows.jsonl").read_text().splitlines()]
    split = places.read(here).data
    for part in ("validation", "heldout"):
        names = {row.id for row in getattr(split, part)}
        changed = [row | {"response": "w98"} if row.get("id") in names else row for row in rows]
        place = tmp_path / part
        place.mkdir()
        for name in ("captured", "student"):
            (place / name).symlink_to(here / name)
        (place / "teacher").symlink_to(here / "teacher")
        places.write(place, changed, **sides(), stages=f"{TRAINING[:-1]}, evaluate]", data=data())
        monkeypatch.chdir(place)
        item = captured_rows(place)
        assert not item.passed
        assert "13 of 13 training rows" in item.detail
        assert re.search(f"0 of . {'held-out' if part == 'heldout' else part} rows", item.detail)
