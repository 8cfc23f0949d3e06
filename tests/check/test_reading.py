"""What the preflight refuses from rows alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import places
from builders.chats import write_lines
from builders.jobs import answers, context
from builders.tiny import EOS
from potstill.check.reading import rows_left, stop_tokens
from potstill.data.lost import Lost
from potstill.types import Example


def test_a_template_without_an_end_fails(tmp_path):
    item = stop_tokens(context(tmp_path, None, stop_ids=()).setup, answers(2))
    assert (item.passed, item.detail) == (
        False,
        "the template ends no turn and the tokenizer has no end token",
    )


def test_answers_whose_end_is_not_scored_fail_and_the_first_is_named(tmp_path):
    endless = [Example(name, (5, 6, EOS), (False, True, False)) for name in ("a", "b")]
    item = stop_tokens(context(tmp_path, None).setup, [*answers(2), *endless])
    assert not item.passed
    assert item.detail.endswith("; 2 rows never score it, first a")


def left_out(count: int, of: int) -> Lost:
    return Lost({"longer than max_length 256": count}, of, "of the rows, 100% fit 300 tokens")


@pytest.mark.parametrize(
    ("count", "of", "on_bad_row", "passed"),
    [
        (0, 0, "skip", False),
        (3, 3, "skip", False),
        (2, 3, "skip", True),
        (6, 100, "error", False),
        (5, 100, "error", True),
        (0, 3, "error", True),
    ],
)
def test_rows_pass_that_a_run_would_take(tmp_path, count, of, on_bad_row, passed):
    setup = replace(context(tmp_path, None).setup, on_bad_row=on_bad_row)
    assert rows_left(setup, "", left_out(count, of)).passed is passed


def test_the_share_of_the_rows_that_are_left_out_is_said(tmp_path):
    item = rows_left(context(tmp_path, None).setup, "", left_out(6, 15))
    assert item.detail.startswith(
        "6 of 15 rows (40%) are left out: 6 longer than max_length 256; of the rows"
    )
    assert "data.max_length" in item.detail
    assert "on_bad_row: skip" in item.detail


def test_held_out_prompts_that_are_trained_on_fail(tmp_path):
    rows = places.answered()
    places.write(tmp_path, rows, data="{train: rows.jsonl, heldout: held.jsonl}")
    write_lines(tmp_path / "held.jsonl", *({"prompt": row["prompt"], "response": "w90"} for row in rows[:3]))
    (failed,) = [item for item in places.checked(tmp_path).items if not item.passed]
    assert failed.name == "overlap"
    assert failed.detail.startswith("of 3 held-out prompts 3 stand in training")
