"""The key of a served teacher: refused, missing, and never repeated by anything that a run leaves."""

from __future__ import annotations

import json

import pytest

from builders import served
from builders.batch_provider import Provider, providing
from builders.cli import potstill
from builders.endpoint import Act, answer, error, serving
from builders.served import CANARY, KEY, everything_in, lines, run, told

pytestmark = pytest.mark.usefixtures("served_key")


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
