"""Runs that share a store: one builds, the others take what it made."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys

from builders import places
from potstill.store import artifacts
from potstill.store.folder import RunDir


def test_two_runs_build_one_artifact_once(tmp_path):
    """The second waits for the first, and takes what it made."""
    places.write(tmp_path, places.prompts(200), stages="[{generate: {filters: null, max_new_tokens: 48}}]")
    command = [sys.executable, "-m", "potstill", "run", "r.yaml"]
    both = [
        subprocess.Popen([*command, f"name={name}"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    told = [run.communicate(timeout=300)[1] for run in both]
    assert [run.returncode for run in both] == [0, 0], told
    (made,) = (tmp_path / "runs/.store").glob("generate-*")
    lines = [json.loads(line) for line in (made / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["row_id"] for line in lines}) == artifacts.read(made).facts["answers"]


def test_an_artifact_that_another_run_holds_is_not_built(tmp_path):
    store = artifacts.Store(tmp_path)
    with store.alone("train", "k" * 64) as first, store.alone("train", "k" * 64) as second:
        assert (first, second) == (True, False)
    with store.alone("train", "k" * 64) as free:
        assert free


def test_a_file_system_without_locks_warns_instead_of_waiting(tmp_path, monkeypatch, caplog):
    def refused(handle, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refused)
    with artifacts.Store(tmp_path).alone("train", "k" * 64) as free:
        assert free
    with RunDir(tmp_path).owned():
        pass
    assert caplog.text.count("takes no locks") == 2
