"""The last mile between potstill and a person: what a failed, stopped or cut-off command says and leaves behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from cases import places
from e2e.cli import potstill
from potstill import check as preflight
from potstill.errors import Interrupted, MachineError
from potstill.recipe.recipe import read_recipe
from potstill.runs import setup
from potstill.stages import train as train_stage
from potstill.store import artifacts
from potstill.store.folder import RunDir

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


def failing(monkeypatch, error: BaseException) -> None:
    """The training stage ends with this error."""

    def fail(*args, **settings):
        raise error

    monkeypatch.setattr(train_stage, "train", fail)


def test_a_disk_that_fills_up_under_the_weights_is_called_a_bug(tmp_path, monkeypatch):
    """Weights are written by a library with an error of its own."""
    places.write(tmp_path)
    failing(monkeypatch, SafetensorError(FULL))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    told = potstill("status", "runs/r", cwd=tmp_path).stdout
    assert told.startswith("runs/r: failed · stage distill")
    assert "the disk is full" in told


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
def test_a_run_that_ends_in_an_unexpected_error_is_taken_for_killed(tmp_path, monkeypatch, error, words):
    places.write(tmp_path)
    failing(monkeypatch, error)
    potstill("run", "r.yaml", cwd=tmp_path)
    told = potstill("status", "runs/r", cwd=tmp_path).stdout
    assert words in told
    assert "killed from outside" not in told


def test_a_failed_run_does_not_say_why(tmp_path, monkeypatch):
    """Message and way out, for people and for programs, until the run is started again."""
    places.write(tmp_path)
    with monkeypatch.context() as patch:
        failing(patch, MemoryError())
        assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 3
    told = potstill("status", "runs/r", cwd=tmp_path).stdout
    assert "error: memory ran out. Lower micro_batch_tokens" in told
    error = json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)["error"]
    assert (error["code"], error["message"], error["exit_code"]) == ("machine", "memory ran out.", 3)
    assert error["fix"].startswith("Lower micro_batch_tokens")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert json.loads(potstill("status", "runs/r", "--json", cwd=tmp_path).stdout)["error"] is None
    assert RunDir(tmp_path / "runs/r").state()["error"] is None


def test_a_program_that_asked_for_json_is_not_told_that_memory_ran_out(tmp_path, monkeypatch):
    places.write(tmp_path)
    failing(monkeypatch, RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["message"] == "memory ran out."


@pytest.mark.parametrize("size", [5, 5000])
def test_the_last_word_needs_room_on_a_full_disk(tmp_path, monkeypatch, size):
    """No new file can be written: the old one is written over, whether it was longer or shorter."""
    folder = RunDir(tmp_path)
    folder.update({"status": "running", "training": "x" * size})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifacts, "write_text", full)
    folder.last_word({"status": "failed", "training": None, "error": {"message": "the disk is full."}})
    assert folder.state() == {"status": "failed", "training": None, "error": {"message": "the disk is full."}}


@pytest.mark.parametrize("seed", ["18446744073709551616", "9223372036854775808", "1e30", "-1"])
def test_a_seed_that_no_generator_takes_passes_the_check(tmp_path, seed):
    places.write(tmp_path, seed=seed)
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert "error: seed: must be at " in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_largest_seed_does_not_run(tmp_path):
    """Also through the draws of generation, the split and the intervals."""
    places.write(
        tmp_path,
        places.prompts(),
        seed="9223372036854775807",
        stages="[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {resamples: 100}}]",
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
def test_tool_calls_that_are_no_list_end_in_a_traceback(tmp_path, calls, kind, shape):
    """Both commands name file and line, like other wrong types."""
    turn = {"role": "assistant", "content": "w31", "tool_calls": calls}
    asked = {"role": "user", "content": "w30"}
    row = {"prompt": [asked], "response": [turn]} if shape == "prompt" else {shape: [asked, turn]}
    places.write(tmp_path, [row])
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "rows.jsonl:1: " in done.stderr
        assert f".tool_calls is {kind}, not a list." in done.stderr
        assert "Traceback" not in done.stderr


NAMES = [
    "my recipe.yaml",
    "2024.yaml",
    "true.yaml",
    "1e3.yaml",
    ".yaml",
    "ünï.yaml",
    "日本.yaml",
    "it's #1: {a}.yaml",
    "two\nlines\a.yaml",
    "-.yaml",
    "n" * 150 + ".yaml",
]


@pytest.mark.parametrize("name", NAMES)
def test_init_writes_a_name_that_check_refuses(tmp_path, name):
    """The name is the one that the recipe would have without the key."""
    places.write(tmp_path)
    done = potstill("init", "--teacher=teacher", "--train=rows.jsonl", "--", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = tmp_path / name
    recipe = read_recipe(written)
    written.write_text(re.sub(r"(?m)^name: .*\n", "", written.read_text(encoding="utf-8")), encoding="utf-8")
    assert read_recipe(written) == recipe


@pytest.mark.parametrize(
    "value",
    ["a #b", "x: y", "a, b", "{a}", "[a", "*a", "&a", "!a", "%a", "@a", "'a", '"a', "- a", "? a", "| a", " a ",
     "null", "~", "010", "0x1F", "1_0", ".5", ".inf", "true", "a\tb", "a\nb", "a\u2028b", "C:\\a", "日本", "😀",
     "meta-llama/Llama-3.2-1B", "package:llm/m.gguf", "--- a", "<<", "a:b", "a:", "=", "#"],
)  # fmt: skip
def test_init_writes_a_value_that_is_read_as_another(tmp_path, value):
    """Whatever a model or a file is called, the recipe says just that."""
    done = potstill(
        "init", f"--teacher={value}", f"--student={value}", f"--train={value}.jsonl", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.teacher.model == recipe.student.model == value
    assert recipe.data.train == (f"{value}.jsonl",)


@pytest.mark.parametrize("value", ["", "\udcff"])
@pytest.mark.parametrize("option", ["teacher", "student", "train"])
def test_init_writes_a_recipe_for_a_name_that_no_recipe_can_hold(tmp_path, option, value):
    """Nothing, or bytes that are no UTF-8."""
    done = potstill("init", f"--{option}={value}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: {option}: " in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_init_names_fails_in_a_shell(tmp_path):
    """Word for word, with a space in the recipe's and in the rows' name."""
    places.write(tmp_path)
    (tmp_path / "rows.jsonl").rename(tmp_path / "a #b.jsonl")
    done = potstill(
        "init", "my recipe.yaml", "--teacher=teacher", "--student=teacher", "--train=a #b.jsonl", cwd=tmp_path
    )
    told = done.stdout.rstrip().partition("next: potstill ")[2]
    assert potstill(*shlex.split(told), "--quick", "generate.max_new_tokens=8", cwd=tmp_path).returncode == 0
    head = (tmp_path / "my recipe.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert "`potstill check 'my recipe.yaml'`" in head


def test_init_keeps_no_plain_value_plain(tmp_path):
    """Quotes stand where they are needed, and nowhere else."""
    assert potstill("init", "mine.yaml", cwd=tmp_path).returncode == 0
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "\nname: mine\n" in text
    assert "\nteacher: {model: HuggingFaceTB/SmolLM2-360M-Instruct}\n" in text
    assert "\n  train: prompts.jsonl\n" in text


def test_the_command_that_continues_fails_in_a_shell(tmp_path, monkeypatch):
    """A folder with a space in its name, from the run and from `status`; word for word it goes on."""
    places.write(tmp_path, runs="my runs")
    with monkeypatch.context() as patch:
        failing(patch, Interrupted("stopped.", signal_number=2))
        said = potstill("run", "r.yaml", cwd=tmp_path)
    assert said.returncode == 130
    told = potstill("status", "my runs/r", cwd=tmp_path)
    for text in (said.stderr, told.stdout):
        command = text.rstrip().partition("Continue with: ")[2]
        assert shlex.split(command) == ["potstill", "run", "my runs/r"]
    assert potstill(*shlex.split(command)[1:], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("name", ["student", "stages/distill"])
def test_a_copy_in_the_place_of_a_link_ends_in_a_traceback(tmp_path, name):
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


def test_a_folder_that_appears_in_the_place_of_a_link(tmp_path):
    """Refused at the link itself too, without a stray link beside it."""
    (tmp_path / "student").mkdir()
    with pytest.raises(MachineError, match="student is a folder"):
        RunDir(tmp_path).link("student", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def pressing(monkeypatch, place: object, name: str, times: int = 1) -> None:
    """Ctrl-C is pressed when this function is called."""

    def press(*args, **settings):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(place, name, press)


def test_a_second_interrupt_is_silent_and_leaves_a_run_that_looks_killed(tmp_path, monkeypatch):
    """The first one asks to stop, the second one stops at once."""
    places.write(tmp_path)
    with monkeypatch.context() as patch:
        pressing(patch, train_stage, "train", times=2)
        done = potstill("run", "r.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr.endswith("Continue with: potstill run runs/r\n")
    assert json.loads(done.stdout)["error"]["code"] == "interrupted"
    told = potstill("status", "runs/r", cwd=tmp_path).stdout
    assert told == "runs/r: interrupted · stage distill\nContinue with: potstill run runs/r\n"
    assert potstill("run", "runs/r", cwd=tmp_path).returncode == 0


def test_an_interrupt_while_rows_are_read_goes_on_to_the_stages(tmp_path, monkeypatch):
    """It is heard before the first stage, whether that one is finished already or not."""
    places.write(tmp_path)
    found = setup.compose
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(setup, "compose", lambda opened: signal.raise_signal(2) or found(opened))
            done = potstill("run", "r.yaml", cwd=tmp_path)
        assert done.returncode == 130
        assert "error: stopped by a signal" in done.stderr
        assert potstill("status", "runs/r", cwd=tmp_path).stdout.startswith("runs/r: interrupted")
        assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("asked", [(), ("--json",)])
@pytest.mark.parametrize(
    ("verb", "place", "name"), [("check", preflight, "check"), ("run", setup, "open_recipe")]
)
def test_an_interrupt_where_nothing_is_saved_yet_is_silent(tmp_path, monkeypatch, asked, verb, place, name):
    """One line, the shell's code for it, and an object for programs."""
    pressing(monkeypatch, place, name)
    done = potstill(verb, "r.yaml", *asked, cwd=tmp_path)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted. Run the same command again.\n"
    assert json.loads(done.stdout)["error"]["exit_code"] == 130 if asked else done.stdout == ""


def hung_up(*arguments: str, cwd: Path) -> tuple[int, bytes]:
    """Run a command whose reader has gone before it says anything."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "potstill", *arguments],
        cwd=cwd,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("schema",),
        ("--help",),
        ("check", "--help"),
        ("init", "new.yaml"),
        ("status", "nowhere", "--json"),
        ("check", "--quick", "r.yaml", "--json"),
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_away_is_called_a_bug(tmp_path, command):
    """128 + SIGPIPE, as other programs end, and not a word about it."""
    if "r.yaml" in command:
        places.write(tmp_path)
    code, said = hung_up(*command, cwd=tmp_path)
    assert code == 141, said
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said
    assert b"bug" not in said


def test_the_reader_of_the_errors_goes_away(tmp_path):
    """What `2>&1 | head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "potstill", "status", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, stdout=writing, stderr=writing, timeout=120)
    os.close(writing)
    assert done.returncode == 141


def test_another_pipe_that_breaks_ends_a_command_in_silence(tmp_path, monkeypatch):
    """Only the reader of what potstill prints may go away without a word."""
    places.write(tmp_path)
    failing(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "this is a bug" in done.stderr


def test_the_schema_refuses_json(tmp_path):
    """It is JSON either way."""
    plain, asked = potstill("schema", cwd=tmp_path), potstill("schema", "--json", cwd=tmp_path)
    assert (asked.returncode, asked.stdout) == (0, plain.stdout)
    assert "stages" in json.loads(asked.stdout)["properties"]
