"""What a check says of a served teacher, and what it refuses: nobody is asked anything."""

from __future__ import annotations

import importlib.util
import json

import pytest

from builders import served
from builders.cli import potstill
from builders.endpoint import serving
from builders.served import KEY, told
from builders.tiny import save_tiny

pytestmark = pytest.mark.usefixtures("served_key")


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


def test_a_teacher_with_weights_refuses_the_engine_of_endpoints(tmp_path):
    from builders import places

    places.write(tmp_path, stages="[{generate: {engine: openai}}]")
    done = potstill("check", "r.yaml", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert "openai takes messages, and this teacher has its weights here" in done.stderr


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
