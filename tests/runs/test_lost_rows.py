"""Rows that a run leaves out: a few are said, many stop it unless the recipe lets them go."""

from __future__ import annotations

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill

LONG = " ".join(["w30"] * 60)


def answers(long: int, of: int = 40) -> list[dict[str, str]]:
    return [row | ({"response": LONG} if i < long else {}) for i, row in enumerate(places.answered(of))]


def prompts(long: int, of: int = 40) -> list[dict[str, str]]:
    rows = places.prompts(of)
    return [row | ({"prompt": f"{LONG} {row['prompt']}"} if i < long else {}) for i, row in enumerate(rows)]


CASES = {
    "answers": (answers, "[{distill: {steps: 1}}]"),
    "answers that are measured": (answers, "[{finetune: {steps: 1}}, {evaluate: {samples: 2}}]"),
    "prompts": (prompts, "[{generate: {filters: null, max_new_tokens: 2}}, {distill: {steps: 1}}]"),
}


def place(tmp_path, case, long, **data):
    make, stages = CASES[case]
    options = ", ".join(f"{key}: {value}" for key, value in {"max_length": 32, **data}.items())
    return places.write(tmp_path, make(long), data=f"{{train: rows.jsonl, {options}}}", stages=stages)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_would_lose_many_rows_says_so_before_its_first_stage_works(tmp_path, case):
    place(tmp_path, case, 16)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "are left out: " in done.stderr
    assert "data.max_length" in done.stderr
    assert "on_bad_row: skip" in done.stderr
    assert not list((tmp_path / "runs/.store").glob("[a-z]*"))


@pytest.mark.parametrize("case", CASES)
def test_check_says_the_share_that_is_lost_and_fails_where_a_run_stops(tmp_path, case):
    place(tmp_path, case, 16)
    (item,) = [item for item in places.checked(tmp_path).items if item.name == "lengths"]
    assert not item.passed
    assert "%) are left out: " in item.detail
    assert "on_bad_row: skip" in item.detail


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_may_skip_rows_goes_on_and_warns_of_the_share(tmp_path, case, caplog):
    place(tmp_path, case, 16, on_bad_row="skip")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "%) are left out: " in caplog.text
    assert places.checked(tmp_path).passed


@pytest.mark.parametrize("case", CASES)
def test_one_row_in_twenty_may_go_with_a_warning(tmp_path, case, caplog):
    place(tmp_path, case, 1)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (item,) = [item for item in places.checked(tmp_path).items if item.name == "lengths"]
    assert item.passed


def test_the_rows_that_a_stage_brings_along_are_counted_by_themselves(tmp_path):
    places.write(
        tmp_path,
        data="{train: rows.jsonl, max_length: 32}",
        stages="[{distill: {steps: 1}}, {finetune: {steps: 1, data: own.jsonl}}]",
    )
    rows = [{**row, "prompt": f"w9 {row['prompt']}"} for row in answers(16)]
    write_lines(tmp_path / "own.jsonl", *rows)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "of 40 rows (40%) are left out: 16 longer than max_length 32" in done.stderr
    (item,) = [item for item in places.checked(tmp_path).items if item.name == "lengths of finetune"]
    assert not item.passed
