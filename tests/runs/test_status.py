"""What the machine refuses, in words, and the state of a run whose files are damaged."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
from safetensors import SafetensorError

from builders import places, served
from builders.cli import potstill
from builders.endpoint import answer, error, serving
from builders.faults import failing
from potstill.errors import Interrupted
from potstill.runs.run import _last_word
from potstill.runs.status import last_step, machine_error, read_status, reason
from potstill.store.folder import RunDir
from potstill.store.lines import append_line

NUMBERS = (
    "EIO", "EMFILE", "ENFILE", "ESTALE", "EFBIG", "ELOOP", "EISDIR", "ENOTDIR", "EACCES", "EPERM", "EROFS",
    "ENOENT", "EINVAL", "ENAMETOOLONG", "ETIMEDOUT", "EBUSY", "ENODEV", "ENXIO",
)  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_every_error_of_the_system_is_one_of_the_machine_with_file_and_reason(name):
    number = getattr(errno, name)
    error = machine_error(OSError(number, os.strerror(number), "/data/x"))
    assert error.exit_code == 3
    assert error.fix
    assert "/data/x" in str(error)
    assert os.strerror(number) in str(error)
    assert "cannot be written" not in str(error)  # it may have been read
    assert reason(OSError(number, "x", "/data/x")).as_dict() == error.as_dict()


@pytest.mark.parametrize("error", [ConnectionError("no route"), TimeoutError(), OSError("odd\nmore")])
def test_an_error_of_the_system_without_a_number_is_one_of_the_machine(error):
    said = machine_error(error)
    assert said.exit_code == 3
    assert (str(error).splitlines() or [type(error).__name__])[0] in said.message


def test_both_files_of_a_failed_rename_are_named():
    error = machine_error(OSError(errno.EXDEV, "x", "/a/x", None, "/b/y"))
    assert "/a/x and /b/y" in str(error)


@pytest.mark.parametrize(
    ("number", "words"), [(5, "Input/output error"), (24, "Too many open files"), (28, "full")]
)
def test_a_number_in_the_words_of_a_library_counts(number, words):
    text = f'Error while serializing: I/O error: odd (os error {number}) at path "/data/.tmp"'
    error = machine_error(SafetensorError(text))
    assert words in str(error)
    assert "/data/.tmp" in str(error)


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("errno 5"), RuntimeError("shape [28]")])
def test_an_error_that_is_not_of_the_system_is_none_of_the_machine(error):
    assert machine_error(error) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE, errno.EFBIG])
def test_a_run_that_the_system_stops_exits_3_and_goes_on(tmp_path, monkeypatch, number):
    places.write(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, OSError(number, os.strerror(number), "weights"))
        done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert f"error: {os.strerror(number)} at weights." in done.stderr
    assert "Traceback" not in done.stderr
    status = json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)
    assert status["error"]["code"] == "machine"
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0


def test_the_last_step_is_the_last_one_that_is_whole(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = {"event": "step", "step": 1, "loss": 2.0, "seconds": 0.1}
    file.write_text(f'{json.dumps(whole)}\n{{"event": "step", "stop": 2}}\n[1]\n')
    assert last_step(str(file)) == whole


def loop(path):
    path.symlink_to(path)


OBSTACLES = {
    "a file as the store": (".store", lambda path: path.write_text("mine")),
    "a loop of links as the store": (".store", loop),
    "a file as the folder of locks": (".store/.locks", lambda path: path.write_text("mine")),
    "a folder as the run's lock": ("r/.lock", lambda path: path.mkdir()),
    "a loop of links as the run's folder": ("r", loop),
    "a loop of links as the state": ("r/run.json", loop),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_of_a_run_is_named_with_a_way_out(tmp_path, name):
    places.write(tmp_path)
    path, make = OBSTACLES[name]
    (tmp_path / "runs" / path).parent.mkdir(parents=True)
    make(tmp_path / "runs" / path)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"runs/{path}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_status_of_a_finished_run_has_its_result_and_where_it_is(tmp_path):
    stages = "[{distill: {steps: 1}}, {evaluate: {samples: 2, resamples: 100}}]"
    places.write(tmp_path, stages=stages)
    run = potstill("run", "r.yaml", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    done = potstill("status", "runs/r", cwd=tmp_path)
    first, verdict, *outputs = done.stdout.splitlines()
    assert first == "runs/r: finished"
    assert verdict == run.stdout.splitlines()[0]
    assert [line.split() for line in outputs] == [
        ["summary", "runs/r/summary.json"], ["student", "runs/r/student"], ["report", "runs/r/report.html"],
    ]  # fmt: skip
    said = json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)
    assert said["verdict"] == verdict
    assert said["outputs"]["report"] == "runs/r/report.html"
    (tmp_path / "runs/r/report.html").unlink()
    assert "report.html" not in potstill("status", "runs/r", cwd=tmp_path).stdout


def test_a_run_says_how_many_rows_are_for_what(tmp_path):
    places.write(tmp_path, places.answered(100))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert (
        "rows: 51 train, 16 validation, 33 held out (33 of 100 rows (33%), split off by prompt)"
        in done.stderr
    )


def test_the_status_of_a_run_that_a_quota_stops_counts_what_was_answered(tmp_path, monkeypatch):
    """The last report of spending came too soon after the first for the run's folder, and was not noted."""
    monkeypatch.setenv(served.KEY, served.CANARY)
    answered = []

    def script(sent, times):
        if len(answered) == 20:
            return error(429, "insufficient_quota")
        answered.append(sent.prompt)
        return answer("w20 w21")

    with serving(script) as server:
        served.write(
            tmp_path, server, more="stages: [{generate: {filters: null, batch_rows: 1}}, finetune]\n"
        )
        done = potstill("run", "r.yaml", "--yes", cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    said = json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)
    assert (said["state"], said["asking"]["done"], said["asking"]["total"]) == ("failed", 20, 40)


def test_the_status_counts_an_answer_once_whatever_journals_hold_it(tmp_path):
    folder = RunDir(tmp_path / "runs/r")
    folder.create()
    (folder.path / "recipe.yaml").write_text("")
    journal = tmp_path / "answers.jsonl"
    for name, samples in {"": [0], ".worker-0": [0, 1], ".worker-1": [2]}.items():
        for sample in samples:
            append_line(journal.with_name(f"{journal.name}{name}"), {"prompt": "p", "sample": sample})
    with journal.open("a") as half:
        half.write('{"prompt": "half a li')
    noted = {"stage": "generate", "journal": str(journal), "total": 8}
    folder.update({"status": "interrupted", "stage": "generate", "writing": noted})
    assert read_status(folder.path).writing == {"done": 3, "total": 8}
    assert "stage generate · 3 of 8 answers" in read_status(folder.path).text()
    folder.update({"stage": "distill"})
    assert read_status(folder.path).writing is None


@pytest.mark.parametrize("stop", [Interrupted("stopped.", signal_number=15), KeyboardInterrupt()])
def test_a_stop_names_what_is_there_to_go_on_with(tmp_path, stop):
    """The run's folder, or the recipe where somebody has deleted the folder meanwhile."""
    folder = RunDir(tmp_path / "runs/r")
    for kept, words in ((True, f"run {folder.path}"), (False, "run 'my r.yaml' seed=1")):
        if kept:
            folder.create()
            (folder.path / "recipe.yaml").write_text("")
        else:
            shutil.rmtree(folder.path)
        with pytest.raises(Interrupted) as caught, _last_word(folder, "my r.yaml", ["seed=1"]):
            raise stop
        assert caught.value.fix == f"Continue with: potstill {words}"
