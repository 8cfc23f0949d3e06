"""Which names a command looks up while nothing says that the machine is offline."""

from __future__ import annotations

import socket
import time

import pytest
from huggingface_hub import constants

from builders import places
from builders.cli import potstill


@pytest.fixture
def looked_up(monkeypatch):
    """The names that are looked up while the hub is not switched off."""
    names: list[object] = []

    def refuse(host, *rest, **settings):
        names.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client tries again and again
    return names


def test_a_run_on_local_files_looks_up_no_name(tmp_path, looked_up):
    """Models and rows are local files: no name is looked up, although the machine may be online."""
    places.write(
        tmp_path, stages="[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {samples: 2}}]"
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
