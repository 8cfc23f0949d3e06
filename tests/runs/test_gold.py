"""Answers that rows bring along, where the teacher writes others: measured against, and never dropped unsaid."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill

MEASURE = "{evaluate: {samples: 6, max_new_tokens: 4, resamples: 100}}"
WRITE = "{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, "
LEARN = "{distill: {steps: 1}}, "


def ran(place, rows, stages, **changes):
    places.write(place, rows, stages=f"[{stages}{MEASURE}]", **changes)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = (place / "runs/r/stages/evaluate/samples.jsonl").read_text().splitlines()
    page = (place / "runs/r/report.html").read_text()
    return done.stderr, places.summary(place), [json.loads(line) for line in lines], page


def test_gold_answers_are_the_references_and_the_teachers_a_second_comparison(tmp_path):
    said, summary, samples, page = ran(tmp_path, places.answered(60), WRITE)
    gold = {row["id"]: row["response"] for row in places.answered(60)}
    assert all(line["reference"] == line["gold"] == gold[line["row_id"]] for line in samples)
    assert all(line["written"] != line["gold"] for line in samples)
    labels = [summary["figures"][key]["label"] for key in ("rouge_l", "rouge_l_teacher")]
    assert labels == ["ROUGE-L vs gold", "ROUGE-L vs teacher"]
    assert summary["after"]["rouge_l"]["n"] == summary["after"]["rouge_l_teacher"]["n"] == 6
    assert summary["reference"]["rouge_l"]["value"] != summary["reference"]["rouge_l_teacher"]["value"]
    assert "6 answers in the data (gold) and, apart from these, 6 answers of the teacher" in page
    for text in (said, page):
        assert "40 of 40 training rows hold an answer that no stage trains on" in text
        assert "20 of 20 held-out rows hold an answer" in text


@pytest.mark.parametrize(("rows", "stages", "kind", "scored"), [
    (places.prompts(60), WRITE, "of the teacher", "that the teacher wrote to held-out prompts"),
    (places.answered(60), LEARN, "in the data (gold)", "in the held-out data"),
])  # fmt: skip
def test_the_page_says_whose_answers_the_references_are(tmp_path, rows, stages, kind, scored):
    said, summary, samples, page = ran(tmp_path, rows, stages)
    assert f"they are compared with 6 answers {kind}." in page
    assert f"models are scored on the answers {scored}." in page
    assert "that no stage trains on" not in said
    assert "rouge_l_teacher" not in summary["figures"]
    assert all(line["reference"] for line in samples)
    whose = "teacher" if rows == places.prompts(60) else "data"
    assert summary["figures"]["length_ratio"]["label"] == f"Length, {whose} = 1"


def test_prompts_without_an_answer_are_compared_with_the_teachers_alone(tmp_path):
    held = [
        {"id": f"h{i}", "prompt": f"w{40 + i} w51"} | ({"response": "w60"} if i % 2 else {}) for i in range(6)
    ]
    write_lines(tmp_path / "held.jsonl", *held)
    data = "{train: rows.jsonl, heldout: held.jsonl}"
    _, summary, _, page = ran(tmp_path, places.prompts(30), WRITE, data=data)
    assert (summary["after"]["rouge_l"]["n"], summary["after"]["rouge_l_teacher"]["n"]) == (3, 6)
    assert "3 answers in the data (gold) and, apart from these, 6 answers of the teacher" in page


def notes(place, rows, stages) -> list[str]:
    places.write(place, rows, stages=f"[{stages}{MEASURE}]")
    return [note for note in places.read(place).notes if "hold an answer" in note]


@pytest.mark.parametrize("stages", [
    LEARN + "{generate: {filters: null, max_new_tokens: 4}}, {distill: {name: again, steps: 1}}, ",
    WRITE + "{finetune: {data: [rows.jsonl], steps: 1}}, ",
])  # fmt: skip
def test_answers_that_a_stage_trains_on_are_not_called_unused(tmp_path, stages):
    rows = places.answered(60)
    told = notes(tmp_path, rows, stages)
    unused = [note for note in told if "no stage trains on" in note]
    assert unused == []


def test_an_answer_that_is_marked_not_to_be_trained_on_is_no_gold(tmp_path):
    turns = [{"role": "user", "content": "w20"}, {"role": "assistant", "content": "w30", "weight": 0}]
    rows = [{"messages": [{**turns[0], "content": f"w20 w{30 + i}"}, turns[1]]} for i in range(60)]
    assert notes(tmp_path, rows, WRITE) == []
