"""Which names a command looks up while nothing says that the machine is offline."""

from __future__ import annotations

import socket
import threading
import time

import datasets
import pytest
from huggingface_hub import constants

from builders import places
from builders.cli import potstill
from potstill.models import hub


@pytest.fixture
def looked_up(monkeypatch, naps):
    """The names that are looked up while the hub is not switched off."""
    names: list[object] = []

    def refuse(host, *rest, **settings):
        names.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # its own copy, made when it was imported
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: naps.append(seconds))  # the hub's client tries again
    monkeypatch.setattr(hub, "_answer", None)
    return names


@pytest.fixture
def naps():
    """The seconds that a client slept before it tried again."""
    return []


def test_a_run_on_local_files_looks_up_no_name(tmp_path, looked_up):
    """Models and rows are local files: no name is looked up, although the machine may be online."""
    places.write(
        tmp_path,
        stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {samples: 2}}]",
    )
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert looked_up == []


def test_a_model_on_the_hub_is_looked_up(tmp_path, looked_up):
    """A model on the hub is looked up, so that the silence above means something."""
    places.write(tmp_path, teacher="{model: someone/some-model}")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 2
    assert looked_up


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    "recipe",
    [
        {"teacher": "{model: someone/some-model}"},
        {"student": "{model: someone/some-model}"},
        {"data": "{train: someone/some-rows}"},
    ],
    ids=["teacher", "student", "rows"],
)
def test_without_a_network_one_sentence_says_so_at_once(tmp_path, looked_up, naps, recipe, command):
    """It was 27 seconds and eleven lines of a client that tried again, for every file."""
    places.write(tmp_path, **recipe)
    done = potstill(command, "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "the hub cannot be reached ([Errno -2] Name or service not known)" in done.stderr
    assert [line for line in done.stderr.splitlines() if "thrown while" in line or "Retrying" in line] == []
    assert naps == []
    assert len(looked_up) == 1
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("name", "cached", "words"),
    [
        ("gpt2", (), "this one may be openai-community/gpt2."),
        ("small", ("models--org--small", "models--org--small-2"), "this one may be org/small."),
        ("small", (), "as in ORGANISATION/small."),
    ],
)
def test_of_a_name_without_organisation_it_is_said_where_it_may_be(
    tmp_path, monkeypatch, looked_up, name, cached, words
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for folder in cached:
        (tmp_path / "hub" / folder).mkdir(parents=True)
    places.write(tmp_path, teacher=f"{{model: {name}}}")
    done = potstill("check", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "the hub cannot be reached" in done.stderr
    said = f"There is no folder {name}, and names on the hub begin with an organisation: {words}"
    assert said in " ".join(done.stderr.split())


def test_a_user_who_is_offline_on_purpose_is_told_a_names_organisation_too(tmp_path, monkeypatch, looked_up):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    places.write(tmp_path, teacher="{model: gpt2-medium}")
    done = potstill("check", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "openai-community/gpt2-medium" in " ".join(done.stderr.split())
    assert looked_up == []


def test_a_name_that_is_looked_up_for_ever_counts_as_no_network(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(hub, "PATIENCE", 0.01)
    monkeypatch.setattr(hub, "_answer", None)
    monkeypatch.setattr(hub, "_reason", never.wait)
    assert hub.unreachable() == "no answer within 0 seconds"
    never.set()


def test_a_hub_that_answered_is_not_asked_again_and_one_that_did_not_is(monkeypatch):
    now, answers = [0.0], ["gone", ""]
    monkeypatch.setattr(hub.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(hub, "_answer", None)
    monkeypatch.setattr(hub, "_ask", lambda: answers.pop(0))
    seen = []
    for now[0] in (0.0, 59.0, 61.0, 200.0):
        seen.append(hub.unreachable())
    assert seen == ["gone", "gone", "", ""]


def test_a_user_who_is_offline_on_purpose_is_not_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_answer", None)
    monkeypatch.setattr(hub, "_ask", lambda: pytest.fail("asked"))
    with hub.within_reach() as why:
        assert why == ""
