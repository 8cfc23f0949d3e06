"""Runs whose teacher is behind an endpoint, on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from builders import served
from builders.cli import potstill
from builders.endpoint import answer, error, serving
from builders.served import CANARY, KEY, SMALL, lines, run, told

pytestmark = pytest.mark.usefixtures("served_key")


def test_a_recipe_of_five_lines_generates_finetunes_and_evaluates(tmp_path):
    with serving(told) as server:
        served.write(tmp_path, server, teacher=", terms: 'research only, 2026-11'")
        done = run(tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.sent) == 40
        assert set(server.prompts.values()) == {1}
        assert server.sent[0].headers["authorization"] == f"Bearer {CANARY}"
    stages = tmp_path / "runs/r/stages"
    assert {stage.name for stage in stages.iterdir()} == {"generate", "finetune", "evaluate"}
    answers = {line["row_id"]: line["text"] for line in lines(stages / "generate/answers.jsonl")}
    prompts = {row["id"]: row["prompt"] for row in lines(tmp_path / "rows.jsonl")}
    assert answers == {row: " ".join(reversed(text.split())) for row, text in prompts.items()}
    facts = json.loads((stages / "generate/manifest.json").read_text())["facts"]
    assert facts["source"] | {"date": ""} == {
        "provider": "127.0.0.1", "endpoint": server.url, "model": "big", "answered_by": {"big-2026-01-01": 40},
        "answered_at": {server.url: 40},
        "terms": "research only, 2026-11", "date": "",
        "sampling": {"max_new_tokens": 8, "temperature": 0.7, "top_p": 1.0, "top_k": 0},
    }  # fmt: skip
    assert facts["spent"]["requests"] == 40
    assert facts["spent"]["money"] == pytest.approx(40 * 0.00006)
    summary = json.loads((tmp_path / "runs/r/summary.json").read_text())
    assert summary["teacher"]["licence"] == "research only, 2026-11"
    told_of, own = summary["sources"]
    assert (told_of["kind"], told_of["provider"], told_of["terms"]) == (
        "teacher",
        "127.0.0.1",
        "research only, 2026-11",
    )
    assert told_of["sampling"]["temperature"] == 0.7
    assert (own["source"], own["terms"]) == ("rows.jsonl", None)
    assert summary["after"]["ppl"]["value"] > 0
    assert "the teacher gives text alone" in summary["after"]["forward_kl_reason"]
    page = (tmp_path / "runs/r/report.html").read_text()
    assert f"big at {server.url} was asked on" in page
    assert "Terms: research only, 2026-11." in page
    card = (tmp_path / "runs/r/student/README.md").read_bytes()
    for words in (
        "Text: 40 answers of `big` (127.0.0.1; answered by `big-2026-01-01` (40)), 20",
        "at temperature 0.7 and at most 8 tokens an answer. Terms: research only, 2026-11.",
        "- Rows: `rows.jsonl`, 27 rows. Terms: not stated.",
        "- finetune, cross-entropy of the text: 2 steps, ",
        f"(SHA-256 `{summary['recipe_hash']}`)",
    ):
        assert words in card.decode(), card.decode()
    for words in (CANARY, KEY, str(tmp_path)):
        assert words not in card.decode()
    assert run(tmp_path).returncode == 0
    assert (tmp_path / "runs/r/student/README.md").read_bytes() == card


# W-04
def test_a_second_run_with_another_filter_asks_nothing(tmp_path):
    with serving(told) as server:
        served.write(tmp_path, server)
        assert run(tmp_path).returncode == 0
        again = run(tmp_path, "name=other", "generate.filters=[{refusals: {action: reject}}]")
        assert again.returncode == 0, again.stderr
        assert len(server.sent) == 40


# field case 77
def test_a_student_is_never_trained_on_what_was_cut_off(tmp_path):
    def script(sent, times):
        return answer("half", "length") if sent.prompt.startswith("w2") else answer("whole")

    with serving(script) as server:
        served.write(tmp_path, server)
        done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    generate = tmp_path / "runs/r/stages/generate"
    rejected = lines(generate / "rejected.jsonl")
    assert {(line["reason"], line["stage"], line["filter"]) for line in rejected} == {
        ("cut off at the limit of tokens", "generate", "truncated")
    }
    # Held-out ones are measured on, which a filter has no say in.
    kept = {line["row_id"] for line in lines(generate / "answers.jsonl") if line["text"] == "half"}
    assert kept | {line["row_id"] for line in rejected} == {f"p{n}" for n in range(10)}
    assert 1 < len(rejected) < 10
    assert f"answers are not used: {len(rejected)} cut off at the limit of tokens" in done.stderr
    summary = json.loads((tmp_path / "runs/r/summary.json").read_text())
    found = summary["answers"]["generate"]["filters"]["truncated"]
    assert (found["found"], len(found["samples"])) == (len(rejected), 3)
    page = (tmp_path / "runs/r/report.html").read_text()
    assert "What filters found in the answers to train on" in page
    assert "generate: cut off at the limit of tokens" in page


def test_a_high_price_is_agreed_to_by_an_option_and_the_command_to_type_is_said(tmp_path):
    with serving(told) as server:
        served.write(tmp_path, server, price="input: 1000, output: 10000")
        done = run(tmp_path)
        assert done.returncode == 2
        assert (
            "nobody agreed to ask for 24 more answers for about 2.4 USD; nothing more was sent" in done.stderr
        )
        assert (
            f"potstill run {tmp_path.resolve()}/runs/r --yes" in done.stderr or "runs/r --yes" in done.stderr
        )
        assert len(server.sent) == 16
        agreed = potstill("run", "runs/r", "--yes", cwd=tmp_path)
        assert agreed.returncode == 0, agreed.stderr
        assert len(server.sent) == 40


# W-03, W-08, W-15
def test_replies_without_an_answer_keep_what_was_received_and_the_report_shows_some(tmp_path):
    """Their text stands beside stage and reason, so that nobody has to look into the journal for it."""
    acts = {
        "w23": answer("half an", "content_filter"),
        "w24": answer("", refusal="I would rather not."),
        "w25": answer("", "length", reasoning_content="so many thoughts"),
        "w26": error(400, "context_length_exceeded", "too long for me"),
    }

    def script(sent, times):
        return acts.get(sent.prompt.split()[0]) or told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server)
        done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    rejected = lines(tmp_path / "runs/r/stages/generate/rejected.jsonl")
    received = {line["reason"].partition(" (")[0]: line["text"] for line in rejected if "filter" not in line}
    assert received["content filter"] == "half an"
    assert received["refusal"] == "I would rather not."
    assert received["reasoning used up its tokens"] == "so many thoughts"
    assert any("too long for me" in text for text in received.values())
    assert {line["stage"] for line in rejected} == {"generate"}
    page = (tmp_path / "runs/r/report.html").read_text()
    assert "I would rather not." in page
    replies = json.loads((tmp_path / "runs/r/summary.json").read_text())["answers"]["generate"]["replies"]
    assert replies["refusal"][0]["text"] == "I would rather not."


def test_samples_that_are_one_answer_over_and_over_are_warned_about_and_count_once(tmp_path):
    """W-21: an endpoint may give one text for every sample, at whatever temperature."""
    with serving(told) as server:
        served.write(tmp_path, server, rows=8, more="stages: [{generate: {samples: 3}}]\n")
        done = potstill("run", "r.yaml", "generate.max_new_tokens=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"(\d) of \1 prompts have one answer over and over", done.stderr)
    used = lines(tmp_path / "runs/r/stages/generate/answers.jsonl")
    assert len({(line["row_id"], line["text"]) for line in used}) == 8
    judged = json.loads((tmp_path / "runs/r/stages/generate/manifest.json").read_text())["facts"]
    assert judged["filters"]["duplicates"]["found"] > 0


def test_the_example_runs_against_any_endpoint(tmp_path, monkeypatch):
    """As it stands, but for the address, the student and the rows."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    example = Path(__file__).parents[2] / "examples/served.yaml"
    with serving(told) as server:
        served.write(tmp_path, server)
        changes = [f"teacher.endpoint={server.url}", "student={model: student}", "data={train: rows.jsonl}"]
        done = potstill("run", str(example), *changes, *SMALL, cwd=tmp_path)
        assert len(server.sent) == 40
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/served/report.html").is_file()


def test_a_model_that_changes_during_a_run_is_named(tmp_path):
    with serving(lambda sent, times: answer("fine", model=f"big-{int(sent.prompt[1:3]) % 2}")) as server:
        served.write(tmp_path, server)
        done = run(tmp_path, "--until", "generate")
    assert "more than one model answered: big-" in done.stderr


# W-08
def test_prompts_that_the_server_refuses_are_counted_together_and_told_apart_in_their_file(tmp_path):
    def script(sent, times):
        return error(400, "", f"not {sent.prompt}") if sent.prompt < "w23" else told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server)
        done = run(tmp_path, "--until", "generate", "generate.engine={openai: {missing: skip}}")
    assert done.returncode == 0, done.stderr
    assert "3 of 40 answers are not used: 3 refused by the server" in done.stderr
    rejected = lines(tmp_path / "runs/r/stages/generate/rejected.jsonl")
    assert sorted(line["reason"] for line in rejected) == [
        f"refused by the server (400: not {prompt})" for prompt in ("w20 w12", "w21 w19", "w22 w26")
    ]
