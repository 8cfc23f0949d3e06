"""What the preflight refuses from rows alone."""

from __future__ import annotations

from builders import places
from builders.chats import write_lines
from builders.jobs import answers, context
from builders.tiny import EOS
from potstill.check.reading import row_lengths, stop_tokens
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


def test_rows_of_which_none_fits_fail_and_some_that_do_not_are_counted(tmp_path):
    setup = context(tmp_path, None).setup
    assert row_lengths(setup, [], 0).passed is False
    some, none = row_lengths(setup, [200, 250, 256], 6), row_lengths(setup, [256, 251], 6)
    assert (some.passed, none.passed) == (True, False)
    assert some.detail.startswith("1 of 3 rows are longer than 256; ")


def test_held_out_prompts_that_are_trained_on_fail(tmp_path):
    rows = places.answered()
    places.write(tmp_path, rows, data="{train: rows.jsonl, heldout: held.jsonl}")
    write_lines(tmp_path / "held.jsonl", *({"prompt": row["prompt"], "response": "w90"} for row in rows[:3]))
    (failed,) = [item for item in places.checked(tmp_path).items if not item.passed]
    assert failed.name == "overlap"
    assert failed.detail.startswith("of 3 held-out prompts 3 stand in training")
