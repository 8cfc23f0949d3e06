"""A check says what becomes of everything that the rows hold, for three rows in detail and counted for all."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.cli import potstill
from potstill.check.report import Count

GENERATE = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 2}}]"


@pytest.fixture
def place(tmp_path):
    rows = [row | {"topic": "w5", "note": ""} for row in places.answered(24)]
    rows[0]["source"] = "book"
    return places.write(tmp_path, rows)


def test_the_parts_of_all_rows_are_counted_with_what_nobody_reads(place):
    report = places.checked(place)
    assert report.ledger[:2] == (Count("a user's turn", 24, 24, 0), Count("an answer", 24, 24, 24))
    assert set(report.ledger[2:]) == {Count("column topic", 24, 0, 0), Count("column source", 1, 0, 0)}
    words = report.text()
    assert "  a user's turn: 24 held, 24 rendered, 0 scored\n" in words
    assert "  column topic: in 24 rows, not read\n" in words


def test_answers_beside_a_generate_stage_are_counted_as_not_rendered(place):
    places.recipe(place, stages=GENERATE)
    assert Count("an answer", 24, 0, 0) in places.checked(place).ledger
    assert "  an answer: 24 held, 0 rendered, 0 scored\n" in places.checked(place).text()


def test_rows_of_a_stage_and_held_out_files_are_counted_too(place):
    (place / "own.jsonl").write_text('{"prompt": "w40", "response": "w41", "mood": "w42"}\n')
    held = [{"prompt": f"w{50 + i}", "response": "w41", "colour": "w42"} for i in range(3)]
    (place / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    places.recipe(
        place,
        data="{train: rows.jsonl, heldout: held.jsonl}",
        stages="[{finetune: {data: [own.jsonl], steps: 2}}]",
    )
    counts = {count.what: count for count in places.checked(place).ledger}
    assert counts["an answer"] == Count("an answer", 28, 28, 28)
    assert counts["column mood"].held == 1
    assert counts["column colour"].held == 3


def test_three_rows_are_shown_with_what_becomes_of_their_parts(place):
    report = places.checked(place)
    assert len(report.rows) == 3
    for row in report.rows:
        question, answer = row.parts
        assert (question.part.turn, question.rendered, question.scored) == (1, True, False)
        assert (answer.part.turn, answer.rendered, answer.scored) == (2, True, True)
        assert answer.part.value in row.text
        assert (row.tokens, row.spans) == (7, ((4, 7),))
        assert "topic" in row.unread
        assert "note" not in row.unread
    words = report.text()
    assert "tokens 4–6 of 7 are scored, between ⟦ and ⟧:" in words
    assert '\n  turn 2, an answer: "' in words
    assert '" – rendered, scored\n' in words
    assert "\n  column topic: not read" in words


def test_programs_get_the_same(place):
    done = potstill("check", "--quick", "--json", "r.yaml", cwd=place)
    report = json.loads(done.stdout)
    assert report["ledger"][0] == {"what": "a user's turn", "held": 24, "rendered": 24, "scored": 0}
    row = report["rows"][0]
    assert row["spans"] == [[4, 7]]
    assert [part["scored"] for part in row["parts"]] == [False, True]
    assert row["parts"][1]["part"]["what"] == "an answer"
    assert "topic" in row["unread"]


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_terminal(tmp_path, width):
    rows = [row | {"prompt": row["prompt"] + " w90" * 60, "topic": "w5"} for row in places.answered()]
    report = places.checked(places.write(tmp_path, rows))
    lines = report.text(width).split("\n")
    assert max(map(len, lines)) <= width
    assert report.text(width).split() == report.text().split()


def test_a_row_of_many_parts_is_cut_in_print_alone(tmp_path):
    turns = [{"role": ("user", "assistant")[i % 2], "content": f"w{20 + i}"} for i in range(20)]
    rows = [{"messages": [{"role": "user", "content": f"w{60 + i}"}, *turns[1:]]} for i in range(24)]
    report = places.checked(places.write(tmp_path, rows))
    assert len(report.rows[0].parts) == 20
    assert report.text().count("  … 8 parts more: --json lists all") == 3
