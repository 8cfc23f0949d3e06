"""An evaluation finishes what the preflight passed, and compares with the right text."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.cli import potstill
from potstill.data.questions import Question
from potstill.evaluate import behaviour
from potstill.evaluate.subject import Answer, Subject


def test_answers_without_a_four_gram_have_no_repetition_figure(tmp_path):
    """No answer has a 4-gram, so there is no share of repeated ones: null with a reason, and a report."""
    places.write(
        tmp_path,
        stages="[{distill: {steps: 1}}, {evaluate: {samples: 4, max_new_tokens: 3, resamples: 100}}]",
    )
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/r/report.html").is_file()
    result = json.loads((tmp_path / "runs/r/stages/evaluate/evaluation.json").read_text())
    repetition = result["models"]["after"]["repetition"]
    assert repetition["value"] is None
    assert repetition["reason"] == "no prompt could be measured"
    behaviour = places.summary(tmp_path)["behaviour"]["after"]
    assert (behaviour["repetition"], behaviour["repetition_reason"]) == (None, "no prompt could be measured")


def test_a_run_finishes_what_the_preflight_passed(tmp_path):
    """200 tokens of prompt and 128 new ones in 256: what the preflight passes, the run finishes."""
    rows = [
        row | {"prompt": " ".join(f"w{12 + (i + j) % 100}" for j in range(200))}
        for i, row in enumerate(places.answered())
    ]
    places.write(tmp_path, rows, stages="[{distill: {steps: 1}}, {evaluate: {resamples: 100}}]")
    checked = potstill("check", "--quick", "r.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert places.summary(tmp_path)["after"]["rouge_l"]["n"] == places.summary(tmp_path)["after"]["n"] > 0


def test_a_conversation_is_compared_with_its_first_answer(tmp_path):
    """The first question is asked, so the reference is the first answer alone."""
    turns = [("user", "w20"), ("assistant", "w40 w41"), ("user", "w50"), ("assistant", "w60 w61 w62")]
    rows = [
        {"id": f"c{i}", "messages": [{"role": r, "content": f"{c} w{70 + i}"} for r, c in turns]}
        for i in range(24)
    ]
    places.write(tmp_path, rows, stages="[{evaluate: {samples: 4, max_new_tokens: 8, resamples: 100}}]")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "runs/r/stages/evaluate/samples.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["reference"] == f"w40 w41 w{70 + int(line['row_id'][1:])}"


@pytest.mark.parametrize("fault", ["no answer", "no room"])
def test_held_out_rows_that_cannot_be_measured_are_refused_before_training(tmp_path, fault):
    """The preflight and the run read held-out rows before they train: refused by name, and nothing is trained."""
    held = [
        {"id": f"h{i}", "prompt": " ".join([f"w{50 + i}"] * (2 if fault == "no answer" else 40))}
        for i in range(5)
    ]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    generate = "" if fault == "no answer" else "{generate: {filters: null, max_new_tokens: 6}}, "
    places.write(
        tmp_path,
        places.answered() if fault == "no answer" else places.prompts(),
        data="{train: rows.jsonl, heldout: held.jsonl, max_length: 30%s}"
        % ("" if fault == "no answer" else ", on_bad_row: skip"),
        stages=f"[{generate}{{distill: {{steps: 1}}}}, {{evaluate: {{metrics: [likelihood], resamples: 100}}}}]",
    )
    checked = potstill("check", "--quick", "r.yaml", "--json", cwd=tmp_path)
    assert checked.returncode == 4, checked.stderr
    failed = [item["name"] for item in json.loads(checked.stdout)["items"] if not item["passed"]]
    assert failed == ["held-out rows"]
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "held" in done.stderr
    assert not list((tmp_path / "runs/.store").glob("train-*"))


def test_unfinished_reasoning_is_counted_apart():
    """An open <think> is a failure of form, counted apart from what was answered wrongly."""
    texts = ["<think>x</think>{}", "<think>x", "{}", "<think>a</think>b<think>"]
    answers = [Answer(text, 3, True) for text in texts]
    questions = [Question(str(i), (), (), "", "", 3) for i in range(4)]
    figures = {f.key: f for f in behaviour.measure(Subject("after", questions=questions, answers=answers))}
    assert figures["unfinished_reasoning"].value == 0.5


def test_several_answers_to_one_prompt_count_as_one_prompt(tmp_path):
    rows = places.answered(60)
    held = [
        {
            "id": f"h{i}-{j}",
            "prompt": f"W{40 + i}  w50" if j % 2 else f"w{40 + i} w50",
            "response": f"w{60 + j}",
        }
        for i in range(4)
        for j in range(3)
    ]
    places.write(
        tmp_path,
        rows,
        data="{train: rows.jsonl, heldout: held.jsonl}",
        stages="[{distill: {steps: 1}}, {evaluate: {samples: 100}}]",
    )
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = places.summary(tmp_path)["after"]
    assert {after[key]["n"] for key in ("forward_kl", "ppl", "agreement", "rouge_l")} == {4}
    samples = (tmp_path / "runs/r/stages/evaluate/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["row_id"] for line in samples] == [f"h{i}-0" for i in range(4)]
