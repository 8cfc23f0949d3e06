"""How a command that fails ends, what `status` says of it, and what is refused before."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from builders import places
from builders.cli import potstill
from builders.faults import failing
from potstill.store.folder import RunDir

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def status(place: Path, *options: str) -> str:
    done = potstill("status", "runs/r", *options, cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_that_fills_up_under_the_weights_exits_3(tmp_path, monkeypatch):
    """The library that writes weights raises an error of its own, which was reported as a bug."""
    places.write(tmp_path)
    failing(monkeypatch, SafetensorError(FULL))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    text = status(tmp_path)
    assert text.startswith("runs/r: failed · stage distill")
    assert "the disk is full" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("odd"), "error: ValueError: odd. Please report it"),
        (
            BrokenPipeError(errno.EPIPE, "Broken pipe"),
            "error: the pipe that the run printed into was closed.",
        ),
    ],
)
def test_status_names_the_unexpected_error_that_ended_a_run(tmp_path, monkeypatch, error, words):
    places.write(tmp_path)
    failing(monkeypatch, error)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 1
    text = status(tmp_path)
    assert words in text
    assert "killed from outside" not in text


def test_status_says_why_a_run_failed_until_it_is_started_again(tmp_path, monkeypatch):
    """Message and way out, for people and for programs, until the run is started again."""
    places.write(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, MemoryError())
        assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 3
    assert "error: memory ran out. Lower micro_batch_tokens" in status(tmp_path)
    error = json.loads(status(tmp_path, "--json"))["error"]
    assert (error["code"], error["message"], error["exit_code"]) == ("machine", "memory ran out.", 3)
    assert error["fix"].startswith("Lower micro_batch_tokens")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert json.loads(status(tmp_path, "--json"))["error"] is None
    assert RunDir(tmp_path / "runs/r").state()["error"] is None


def test_out_of_memory_is_reported_as_json(tmp_path, monkeypatch):
    places.write(tmp_path)
    failing(monkeypatch, RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["message"] == "memory ran out."


@pytest.mark.parametrize("seed", ["18446744073709551616", "9223372036854775808", "1e30", "-1"])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path, seed):
    places.write(tmp_path, seed=seed)
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert "error: seed: must be at " in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_largest_seed_is_accepted(tmp_path):
    """Also through the draws of generation, the split and the intervals."""
    places.write(
        tmp_path,
        places.prompts(),
        seed="9223372036854775807",
        stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {resamples: 100}}]",
    )
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0


CALLS: list[tuple[object, str]] = [
    (5, "a number"),
    (True, "true or false"),
    ({"name": "f"}, "an object"),
    ("f(x)", "text"),
]


@pytest.mark.parametrize(("calls", "kind"), CALLS)
@pytest.mark.parametrize("shape", ["messages", "conversations", "prompt"])
def test_tool_calls_that_are_no_list_are_refused_with_their_line(tmp_path, calls, kind, shape):
    """Both commands name file and line, like other wrong types."""
    turn = {"role": "assistant", "content": "w31", "tool_calls": calls}
    prompt = {"role": "user", "content": "w30"}
    row = {"prompt": [prompt], "response": [turn]} if shape == "prompt" else {shape: [prompt, turn]}
    places.write(tmp_path, [row])
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "rows.jsonl:1: " in done.stderr
        assert f".tool_calls is {kind}, not a list." in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["student", "stages/distill"])
def test_a_copy_in_the_place_of_a_link_is_refused_and_kept(tmp_path, name):
    """As `cp -rL` leaves it: named with the way out before a stage runs, and never deleted."""
    places.write(tmp_path)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    link = tmp_path / "runs/r" / name
    shutil.copytree(link.resolve(), tmp_path / "copy")
    link.unlink()
    (tmp_path / "copy").rename(link)
    before = sorted(link.rglob("*"))
    done = potstill("run", "r.yaml", "distill.steps=3", cwd=tmp_path)
    assert done.returncode == 3
    assert f"runs/r/{name} is a folder where a link belongs. Move it away" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "runs/.store").glob("*train-*"))) == 1
    assert sorted(link.rglob("*")) == before
    link.rename(tmp_path / "mine")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert link.is_symlink()


def test_the_schema_is_the_same_with_json(tmp_path):
    """It is JSON either way."""
    plain, as_json = potstill("schema", cwd=tmp_path), potstill("schema", "--json", cwd=tmp_path)
    assert (plain.returncode, as_json.returncode) == (0, 0)
    assert plain.stdout == as_json.stdout
    assert "stages" in json.loads(plain.stdout)["properties"]
