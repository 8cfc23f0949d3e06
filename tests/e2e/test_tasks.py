"""Runs with a task and with prompts of their own for both sides, against a served teacher."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from builders import places, served
from builders.chats import bytes_tokenizer, write_lines
from builders.cli import potstill
from builders.endpoint import Endpoint, answer, error, serving
from builders.pages import Page
from builders.served import CANARY, KEY
from builders.tiny import save_tiny, tiny_model

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["generate.max_new_tokens=8", "finetune.steps=2", "evaluate.samples=6", "evaluate.resamples=100"]
RIGHT = {
    re.search(r"\d{4}", row["prompt"])[0]: row["right"]  # type: ignore[index]
    for row in map(json.loads, (EXAMPLES / "data/tickets.jsonl").read_text().splitlines())
}


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(KEY, CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)


def ticket(sent: Any, times: int) -> Any:
    """The right answer to a ticket; of one in ten something that is none."""
    (number,) = re.findall(r"\d{4}", sent.prompt.rpartition("Message: ")[2])
    text = json.dumps(RIGHT[number])
    return answer("I cannot say." if number.endswith("7") else text)


def bytes_student(place: Path) -> None:
    tokenizer = bytes_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(place)
    tokenizer.save_pretrained(place)


def summary(place: Path, name: str) -> dict[str, Any]:
    return json.loads((place / f"runs/{name}/summary.json").read_text())


def labelled(place: Path, server: Endpoint, **more: str) -> None:
    """A labelling task; the right label is that of the first word's number."""
    served.write(
        place, server, more="task: {type: label, labels: [w20, w21], gold: y}\n" + more.get("more", "")
    )
    rows = [row | {"y": f"w{20 + index % 2}"} for index, row in enumerate(places.prompts(40))]
    write_lines(place / "rows.jsonl", *rows)


def by_parity(sent: Any, times: int) -> Any:
    number = int(re.match(r"w(\d+)", sent.prompt)[1])  # type: ignore[index]
    if number == 27:
        return error(400, "context_length_exceeded", "too long")
    return answer("well" if number in (25, 36) else f"w{20 + number % 2}")


def test_the_example_asks_the_long_prompt_and_trains_on_the_short_one(tmp_path: Path) -> None:
    """As it stands, but for the address, the student and a schema that this server does not know."""
    bytes_student(tmp_path / "student")
    with serving(ticket) as server:
        changes = [f"teacher.endpoint={server.url}", f"student.model={tmp_path / 'student'}"]
        small = [
            "finetune.steps=2",
            "evaluate.resamples=100",
            "task.response_format=false",
            "evaluate.max_new_tokens=8",
        ]
        done = potstill("run", str(EXAMPLES / "task.yaml"), *changes, *small, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.sent) == 72
        assert all(one.prompt.startswith("Read a customer's message") for one in server.sent)
        assert all("response_format" not in one.body for one in server.sent)
    made = summary(tmp_path, "task")
    teacher, after = made["reference"], made["after"]
    # A teacher that writes nothing here is measured by what it wrote, its failures included.
    assert teacher["valid"]["value"] < 1
    assert teacher["field_exactness_gold"]["value"] == pytest.approx(teacher["valid"]["value"])
    assert "field_exactness_teacher" not in teacher
    assert after["field_exactness_gold"]["n"] == after["n"] == made["data"]["heldout"]["rows"]
    assert after["field_exactness_teacher"]["n"] < after["n"]
    assert made["money"]["teacher"]["tokens_in"] == 10
    assert made["money"]["student"]["per_1000_requests"] > 0
    samples = (tmp_path / "runs/task/stages/evaluate/samples.jsonl").read_text().splitlines()
    assert all(json.loads(line)["prompt"].startswith("Ticket: ") for line in samples)
    page = Page((tmp_path / "runs/task/report.html").read_text())
    assert "The teacher gives text alone" in page.text
    assert "Exact fields vs gold" in page.text
    assert "no JSON: " in page.text  # in the funnel
    captions = [e.children[0].text for e in page.all("table")]
    assert "Cost of 1,000 requests" in captions
    assert "Invalid answers" in captions


def test_invalid_labels_are_never_trained_on_and_a_second_stage_is_judged_on_its_own(tmp_path: Path) -> None:
    """The teacher's answers, then the right ones of a file: what the second stage does stands in the report.

    Field cases 44 and 80: a prompt is asked once, and one that is too long for the teacher is left out on both sides.
    """
    with serving(by_parity) as server:
        stages = (
            "stages: [generate, finetune, {finetune: {name: own, data: own.jsonl, steps: 2}}, evaluate]\n"
        )
        labelled(tmp_path, server, more=stages)
        own = [{"prompt": f"w{90 + i} w{50 + i}", "response": f"w{20 + i % 2}"} for i in range(24)]
        write_lines(tmp_path / "own.jsonl", *own)
        done = potstill("run", "r.yaml", *SMALL, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert re.search(
        r"\d of \d+ answers are invalid and left out: p\d+: none of the labels \('well'\)", done.stderr
    )
    assert set(server.prompts.values()) == {1}
    generate = tmp_path / "runs/r/stages/generate"
    lost, *invalid = map(json.loads, (generate / "rejected.jsonl").read_text().splitlines())
    assert (lost["row_id"], lost["reason"].partition(" (")[0]) == ("p7", "longer than the teacher's context")
    assert {(one["filter"], one["reason"]) for one in invalid} == {("task", "none of the labels ('well')")}
    assert '"p7"' not in (generate / "answers.jsonl").read_text()
    made = summary(tmp_path, "r")
    first, second = made["by_stage"]
    assert (first["stage"], second["stage"]) == ("finetune", "own")
    for stage in (first, second):
        paired, before, after = (stage[key]["ppl"] for key in ("difference", "before", "after"))
        assert paired["value"] == pytest.approx(after["value"] - before["value"])
        assert paired["low"] <= paired["value"] <= paired["high"]
        assert "label_accuracy_gold" in stage["difference"]
    found = made["task"]["details"]["after"]["labels"]["gold"]
    assert sum(map(sum, found["counts"])) == made["after"]["label_accuracy_gold"]["n"]
    page = Page((tmp_path / "runs/r/report.html").read_text())
    assert "Distilled student vs gold: answers (columns) by reference (rows)" in page.text
    again = potstill("run", "r.yaml", *SMALL, "task={type: label, labels: [w20, w21, well]}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(server.sent) == 40  # the journal answers what another task asks (W-04)


def test_held_out_rows_without_an_answer_count_as_the_teachers_failures(tmp_path: Path) -> None:
    """A content filter must not make the teacher look better: every held-out row is in the denominators."""

    def filtered(sent: Any, times: int) -> Any:
        number = int(re.match(r"w(\d+)", sent.prompt)[1])  # type: ignore[index]
        return answer("", "content_filter") if number % 4 == 0 else answer(f"w{20 + number % 2}")

    with serving(filtered) as server:
        labelled(tmp_path, server)
        done = potstill("run", "r.yaml", *SMALL, "evaluate.samples=100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (lost, of) = map(int, re.search(r"no answer to (\d+) of (\d+) held-out rows", done.stderr).groups())  # type: ignore[union-attr]
    assert 0 < lost < of
    assert "they count as invalid answers of the teacher" in done.stderr
    made = summary(tmp_path, "r")
    for role in ("reference", "after"):
        assert made[role]["valid"]["n"] == made[role]["label_accuracy_gold"]["n"] == of
    assert made["reference"]["valid"]["value"] == pytest.approx(1 - lost / of)
    assert made["reference"]["label_accuracy_gold"]["value"] <= 1 - lost / of
    assert made["after"]["ppl"]["n"] == of - lost
    page = Page((tmp_path / "runs/r/report.html").read_text())
    assert f"The teacher has no answer to {lost} of {of} held-out rows: {lost} content filter." in page.text


def schema_task(place: Path, server: Endpoint) -> None:
    served.write(place, server, rows=20, more="task: {type: json, schema: s.json}\n")
    (place / "s.json").write_text((EXAMPLES / "data/ticket.schema.json").read_text())


def test_a_server_that_ignores_the_schema_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with serving(answer("Sure!")) as server:
        schema_task(tmp_path, server)
        done = potstill("run", "r.yaml", *SMALL, cwd=tmp_path)
        assert server.sent[0].body["response_format"]["json_schema"]["strict"] is True
    assert done.returncode == 2
    assert "the server ignores a field: response_format was sent" in done.stderr
    assert "task.response_format: false" in done.stderr


@pytest.mark.parametrize(
    "act",
    [
        error(400, "unsupported_parameter", "response_format is not supported"),
        error(400, "", "unknown field response_format"),
    ],
)
def test_a_server_that_refuses_the_schema_is_an_error_that_says_what_to_do(tmp_path: Path, act: Any) -> None:
    with serving(act) as server:
        schema_task(tmp_path, server)
        done = potstill("run", "r.yaml", *SMALL, cwd=tmp_path)
    assert done.returncode in (2, 5)
    assert "response_format" in done.stderr


def test_a_check_shows_both_prompts_and_the_right_answers(tmp_path: Path) -> None:
    save_tiny(tmp_path / "student")
    (tmp_path / "long.j2").write_text("w60 w61 {{ prompt }}")
    (tmp_path / "short.j2").write_text("w62 {{ prompt }}")
    labelled(tmp_path, Endpoint("http://127.0.0.1:9/v1", lambda sent, times: answer()))
    changes = ["teacher.prompt=long.j2", "student.prompt=short.j2"]
    done = potstill("check", "r.yaml", "--quick", *changes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"user: w60 w61 w\d+", done.stdout)
    assert re.search(r"<s>w62 w\d+ w\d+ \|⟦the teacher's answer⟧", done.stdout)
    assert re.search(r"held-out rows hold the right answer in 'y'", done.stdout)
    leaked = potstill("check", "r.yaml", "--quick", "task.gold=nope", cwd=tmp_path)
    assert leaked.returncode == 2
    assert "no held-out row has the column 'nope'" in leaked.stderr
