"""Runs whose teacher is behind an endpoint, on the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest

from builders import many, served
from builders.batch_provider import Provider, providing
from builders.cli import potstill
from builders.endpoint import Act, answer, error, serving
from builders.served import CANARY, KEY
from builders.tiny import save_tiny

SMALL = ["generate.max_new_tokens=8", "finetune.steps=2", "evaluate.samples=4"]


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv(KEY, CANARY)


def told(sent, times):
    return answer(" ".join(reversed(sent.prompt.split())))


def run(place, *more):
    return potstill("run", "r.yaml", *SMALL, *more, cwd=place)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def everything_in(place) -> bytes:
    """All bytes below a folder, each file once."""
    return b"".join(p.read_bytes() for p in place.rglob("*") if p.is_file() and not p.is_symlink())


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


# W-11
@pytest.mark.parametrize("act", [error(401, "invalid_api_key"), error(429, "insufficient_quota")])
def test_a_refused_key_and_a_used_up_quota_exit_with_5(tmp_path, act):
    with serving(act) as server:
        served.write(tmp_path, server)
        done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 5
    said = json.loads(done.stdout)["error"]
    assert (said["code"], said["exit_code"], said["retryable"]) == ("provider", 5, True)


def test_the_key_appears_in_no_file_and_no_output(tmp_path, monkeypatch):
    """Not where the server repeats it in a text, an error or a header, nor where the SDK logs all that it does."""

    def script(sent, times):
        heard = sent.headers["authorization"] + sent.headers["x-gateway"]
        if sent.prompt.startswith("w20"):
            return error(400, "", f"I was told {heard}")
        if sent.prompt.startswith("w21") and times == 0:
            return Act(500, heard.encode(), {"x-request-id": heard})
        return answer(f"you said {heard}")

    monkeypatch.setenv("GATEWAY", "gateway-canary-55")
    with serving(script) as server:
        served.write(tmp_path, server, teacher=", headers_env: {X-Gateway: GATEWAY}")
        done = run(tmp_path, "generate.engine={openai: {missing: skip}}")
        assert done.returncode == 0, done.stderr
        assert server.sent[0].headers["x-gateway"] == "gateway-canary-55"
        failed = potstill(
            "run",
            "r.yaml",
            "teacher.model=other",
            "name=f",
            "generate.engine={openai: {budget_requests: 3}}",
            cwd=tmp_path,
        )
        assert failed.returncode == 5
    for said in (done.stdout, done.stderr, failed.stdout, failed.stderr):
        assert "canary" not in said
    assert b"canary" not in everything_in(tmp_path)
    assert (
        "[key]" in {line["text"] for line in lines(tmp_path / "runs/r/stages/generate/answers.jsonl")}.pop()
    )


def test_a_key_that_no_header_can_carry_is_refused_without_repeating_it(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, f"{CANARY}\nsecond line")
    with serving(told) as server:
        served.write(tmp_path, server)
        done = run(tmp_path)
        assert done.returncode == 2
        assert server.sent == []
    assert f"{KEY} holds characters that no header can carry" in done.stderr
    assert "canary" not in done.stderr


def test_a_key_that_is_not_set_is_named_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY)
    with serving(told) as server:
        served.write(tmp_path, server)
        done = run(tmp_path)
        assert server.sent == []
    assert done.returncode == 2
    assert f"teacher.key_env: the environment variable {KEY} is not set" in done.stderr


# W-01, field case 78
def test_an_interrupted_run_keeps_what_was_answered_and_goes_on(tmp_path):
    """Ctrl-C once: nothing more is sent, answers so far are written out, and the command that goes on is said."""
    pressed = []

    def script(sent, times):
        if len(server.sent) == 22 and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server, rows=120)
        done = run(tmp_path, "generate.batch_rows=2")
        assert done.returncode == 130
        assert "Continue with: potstill run runs/r" in done.stderr
        so_far = lines(tmp_path / "runs/r/answers-so-far.jsonl")
        assert len(so_far) == len(server.sent) < 120
        status = potstill("status", "runs/r", cwd=tmp_path).stdout
        assert f"{len(so_far)} of 120 answers · {len(so_far)} requests" in status
        assert "USD" in status
        asking = json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)["asking"]
        assert asking["done"] == len(so_far)
        assert potstill("run", "runs/r", cwd=tmp_path).returncode == 0
        assert set(server.prompts.values()) == {1}
    assert not (tmp_path / "runs/r/answers-so-far.jsonl").exists()


def test_a_check_reads_everything_and_asks_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY)
    with serving(told) as server:
        served.write(tmp_path, server)
        done = potstill("check", "r.yaml", cwd=tmp_path)
        assert server.sent == []
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the teacher is served" in done.stdout
    assert "⟦the teacher's answer⟧" in done.stdout
    assert "teacher: big" in done.stdout


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "stages: [{generate: {engine: local}}]\n",
            "local takes ids, and this teacher is asked over the network",
        ),
        ("stages: [generate, distill]\n", "this teacher gives no distribution over tokens"),
        ("stages: [generate, capture]\n", "this teacher gives no distribution over tokens"),
        ("stages: [{generate: {top_k: 20}}]\n", "stages.generate.top_k: is no field of the OpenAI protocol"),
        (
            "stages: [{generate: {keep: hidden}}]\n",
            "stages.generate.keep: needs a teacher whose weights are whole",
        ),
        (
            "stages: [{generate: {engine: {openai: {retry_truncated: 8}}, max_new_tokens: 8}}]\n",
            "retry_truncated: is 8",
        ),
    ],
)
def test_what_a_served_teacher_cannot_do_is_refused_by_the_check(tmp_path, more, words):
    with serving(told) as server:
        served.write(tmp_path, server, more=more)
        done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("teacher", "more", "words"),
    [
        (
            ", omit: [temperature]",
            "{sampling_temperature: 0.2}",
            "sampling_temperature: is never sent: teacher.omit",
        ),
        (", omit: [top_p]", "{top_p: 0.5}", "top_p: is never sent: teacher.omit"),
        (", extra_body: {top_k: 5}", "{top_k: 20}", "is 20, and what is sent is teacher.extra_body.top_k: 5"),
    ],
)
def test_sampling_that_is_not_what_is_sent_is_refused_by_the_check(tmp_path, teacher, more, words):
    with serving(told) as server:
        served.write(tmp_path, server, teacher=teacher, more=f"stages: [{{generate: {more}}}]\n")
        done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_conversations_for_an_endpoint_of_completions_are_refused_by_the_check(tmp_path):
    def turns(i):
        user = {"role": "user", "content": f"w{20 + i}"}
        return [user, {"role": "assistant", "content": "w2"}, user] if i == 9 else [user]

    with serving(told) as server:
        served.write(tmp_path, server, teacher=", api: completions")
        rows = (json.dumps({"messages": turns(i)}) for i in range(10))
        (tmp_path / "rows.jsonl").write_text("".join(f"{row}\n" for row in rows))
        done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert "a prompt has 3 turns, and api: completions takes one text" in done.stderr
    assert done.returncode != 0


def test_a_client_that_is_not_installed_is_named_by_the_check(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "openai" else found(name, *a)
    )
    with serving(told) as server:
        served.write(tmp_path, server)
        done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert "pip install 'potstill[api]'" in done.stderr


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


def test_a_teacher_with_weights_refuses_the_engine_of_endpoints(tmp_path):
    from builders import places

    places.write(tmp_path, stages="[{generate: {engine: openai}}]")
    done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert "openai takes messages, and this teacher has its weights here" in done.stderr


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


def test_freeing_the_store_leaves_paid_answers(tmp_path):
    with serving(told) as server:
        served.write(tmp_path, server)
        assert run(tmp_path).returncode == 0
        shutil.rmtree(tmp_path / "runs/r")
        assert potstill("store", "gc", "--yes", cwd=tmp_path).returncode == 0
        assert {p.name for p in (tmp_path / "runs/.store").glob("[!.]*")} == set()
        again = run(tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(server.sent) == 40
    facts = json.loads((tmp_path / "runs/r/stages/generate/manifest.json").read_text())["facts"]
    assert facts["answers"] == 40


def test_a_killed_run_says_where_it_stood_and_asks_only_what_is_missing(tmp_path):
    enough = threading.Event()

    def script(sent, times):
        if len(server.sent) >= 30:
            enough.set()
        return told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server, rows=200)
        process = many.start(tmp_path, "run", "r.yaml", *SMALL, "generate.batch_rows=2")
        while not enough.wait(0.1):
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        status = potstill("status", "runs/r", cwd=tmp_path).stdout
        assert "runs/r: died · stage generate" in status
        assert "of 200 answers" in status
        asked = len(server.sent)
        again = potstill("run", "runs/r", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert asked < 200
        assert len(server.sent) <= 202
    assert len(lines(tmp_path / "runs/r/stages/generate/answers.jsonl")) == 200


# W-01
def test_a_second_ctrl_c_leaves_at_once_and_the_journal_is_whole(tmp_path):
    pressed = []

    def script(sent, times):
        if len(server.sent) == 20 and not pressed:
            pressed.append(True)
            before = signal.getsignal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            while signal.getsignal(signal.SIGINT) is before:  # until the first is noticed
                threading.Event().wait(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.3)
        return told(sent, times)

    with serving(script) as server:
        served.write(tmp_path, server)
        done = run(tmp_path, "generate.batch_rows=1")
        assert done.returncode == 130
        assert "stopped at once" in done.stderr
        again = potstill("run", "runs/r", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(server.sent) <= 41
    assert "may have been billed" in again.stderr


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


def test_a_recipe_asks_in_batch_files_and_no_file_holds_the_key(tmp_path):
    with providing(Provider(told)) as (provider, server):
        served.write(tmp_path, server)
        engine = "generate.engine={batch: {price_share: 0.5, poll_seconds: 0.01, requests_per_batch: 12}}"
        done = run(tmp_path, engine, "--until", "generate")
        assert done.returncode == 0, done.stderr
        assert (len(server.sent), len(provider.batches)) == (16, 2)
        assert "batch batch-1: completed, 12 of 12 answered" in done.stdout + done.stderr
    facts = json.loads((tmp_path / "runs/r/stages/generate/manifest.json").read_text())["facts"]
    assert facts["answers"] == 40
    assert facts["spent"]["money"] == pytest.approx(16 * 0.00006 + 24 * 0.00003)
    assert len([*tmp_path.glob("runs/.store/.journal/batches/*.output.jsonl")]) == 2
    assert CANARY.encode() not in everything_in(tmp_path) + (done.stdout + done.stderr).encode()


def test_check_names_what_an_engine_needs(tmp_path, monkeypatch):
    """Before anything is loaded, and the engine of a served teacher is no engine of weights."""
    save_tiny(tmp_path / "big")
    with serving(told) as server:
        served.write(tmp_path, server)
    refused = potstill("check", "--quick", "r.yaml", "generate.engine=vllm", cwd=tmp_path)
    assert (refused.returncode, "vllm takes ids" in refused.stderr) == (2, True)
    (tmp_path / "r.yaml").write_text(
        "teacher: {model: big}\nstudent: {model: student}\ndata: {train: rows.jsonl}\n"
    )
    for name in ("vllm", "ray"):
        if importlib.util.find_spec(name) is None:
            done = potstill("check", "--quick", "r.yaml", f"generate.engine={name}", cwd=tmp_path)
            assert (done.returncode, f"pip install 'potstill[{name}]'" in done.stderr) == (3, True), (
                done.stderr
            )
