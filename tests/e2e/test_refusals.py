"""Impossible work is refused in one sentence with a way out and the right exit code, before heavy work starts."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from builders import places, tiny
from builders.cli import potstill
from builders.faults import failing
from potstill.errors import TrainingStopped
from potstill.runs.status import machine_error
from potstill.train import folder

RECIPE = {
    "student": "{from_teacher: {keep_layers: 2}}",
    "stages": "[{distill: {steps: 2}}, {evaluate: {metrics: [likelihood]}}]",
}


@pytest.fixture
def place(tmp_path) -> Path:
    tiny.save_tiny(tmp_path / "teacher", layers=3)
    return places.write(tmp_path, places.answered(40), **RECIPE)


def recipe(place: Path, **changes: str) -> None:
    places.recipe(place, **(RECIPE | changes))


def refused(place: Path, words: str, code: int = 2) -> str:
    """Both `check` and `run` refuse with this code and these words, and without a traceback."""
    for verb in ("check", "run"):
        done = potstill(verb, "r.yaml", cwd=place)
        assert done.returncode == code, (verb, done.stderr)
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    return done.stderr


def test_pickled_weights_are_refused(place):
    weights = place / "teacher" / "model.safetensors"
    weights.rename(place / "teacher" / "pytorch_model.bin")
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "only pickled weights" in done.stderr


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 269060552\n"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("model.safetensors", POINTER, "model.safetensors is a pointer of Git LFS"),
        ("model.safetensors", "", "cannot read"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "w.bin"}}', "names 'w.bin'"),
        ("tokenizer.json", '{"model": {"type": "Strange"}}', "cannot load the tokenizer"),
        ("adapter_config.json", "{}", "holds an adapter"),
    ],
)
def test_a_quick_check_names_a_model_file_that_no_run_could_use(place, name, text, words):
    if name.endswith("index.json"):
        (place / "teacher" / "model.safetensors").unlink()
    (place / "teacher" / name).write_text(text)
    done = potstill("check", "r.yaml", "--quick", cwd=place)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr


def test_remote_code_without_a_pinned_commit_is_refused(place):
    recipe(place, teacher="{model: some/model, trust_remote_code: true, revision: main}")
    refused(place, "40 hexadecimal digits")


def test_a_hub_name_without_a_network_is_refused(place):
    recipe(place, teacher="{model: no-such/model-anywhere}")
    text = refused(place, "cannot load the model no-such/model-anywhere")
    assert "never replaces one model by another" in text


def test_a_missing_weight_is_refused_by_name(place):
    file = place / "teacher" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "model.norm.weight" in done.stderr


def test_chat_rows_without_a_template_are_refused(place):
    tiny.tiny_tokenizer(template=None).save_pretrained(place / "teacher")
    (place / "teacher" / "chat_template.jinja").unlink(missing_ok=True)
    assert "data.template.file" in refused(place, "the tokenizer has no chat template")


def test_vocabularies_that_differ_are_refused_with_a_way_out(place):
    tiny.save_tiny(place / "other", layers=1)
    tokenizer = tiny.tiny_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"]
    vocabulary["w20"], vocabulary["w21"] = vocabulary["w21"], vocabulary["w20"]
    file = place / "other" / "tokenizer.json"
    file.write_text(json.dumps(core))
    recipe(place, student="{model: other}")
    words = "do not share a vocabulary: id 20 is 'w20' for the teacher and 'w21' for the student"
    assert "generate, finetune" in refused(place, words)


def test_a_file_without_a_usable_row_is_refused(place):
    (place / "rows.jsonl").write_text("\n \n\n")
    refused(place, "rows.jsonl: has no rows")


def test_a_broken_line_names_file_and_line(place):
    lines = (place / "rows.jsonl").read_text().splitlines()
    lines[3] = '{"prompt": "w1",'
    (place / "rows.jsonl").write_text("\n".join(lines))
    assert "on_bad_row: skip" in refused(place, "rows.jsonl:4")
    recipe(place, data="{train: rows.jsonl, on_bad_row: skip}")
    assert potstill("check", "--quick", "r.yaml", cwd=place).returncode == 0


def test_rows_that_are_all_too_long_are_refused(place):
    recipe(place, data="{train: rows.jsonl, max_length: 3}")
    refused(place, "rows have no target")


def test_more_layers_than_the_teacher_has_are_refused(place):
    recipe(place, student="{from_teacher: {keep_layers: 9}}")
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "the teacher has 3" in done.stderr


def test_a_teacher_with_a_nan_weight_is_refused(place):
    file = place / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "not finite" in done.stderr


def test_training_that_stops_itself_exits_6(place, monkeypatch):
    failing(monkeypatch, TrainingStopped("the loss is nan on rows r1.", fix="Lower the learning rate."))
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 6
    assert "rows r1" in done.stderr
    state = json.loads((place / "runs/r/run.json").read_text())
    assert (state["status"], state["error"]["code"]) == ("failed", "training")


def test_a_place_that_cannot_be_written_exits_3(place):
    (place / "runs").write_text("a file where the folder should be")
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 3
    assert "cannot write to runs/r" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_exits_3_and_keeps_what_is_done(place, monkeypatch):
    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(folder, "append_line", full)
        done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 3
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert potstill("run", "r.yaml", cwd=place).returncode == 0


def test_only_errors_of_the_machine_are_machine_errors():
    assert machine_error(ValueError("odd")) is None
    assert machine_error(OSError(errno.EINVAL, "odd")).exit_code == 3
    assert machine_error(MemoryError()).exit_code == 3


def test_status_says_where_a_run_stands(place):
    assert potstill("status", "runs/r", cwd=place).returncode == 2
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    done = potstill("status", "runs/r", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("runs/r: finished")
    state = place / "runs/r/run.json"
    running = json.loads(state.read_text()) | {"status": "running", "stage": "distill"}
    metrics = place / "runs/r/stages/distill/metrics.jsonl"
    state.write_text(json.dumps(running | {"training": {"metrics": str(metrics), "steps": 2}}))
    done = potstill("status", "runs/r", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    died = json.loads(done.stdout)
    assert died["state"] == "died"
    assert died["step"] == 2
    assert "ended without a word after step 2" in died["hint"]
    again = potstill("run", "r.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "ended without a word after step 2" in again.stderr


def test_a_narrow_terminal_and_no_color_lose_nothing(place, monkeypatch):
    wide = potstill("check", "--quick", "r.yaml", cwd=place)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    done = potstill("check", "--quick", "r.yaml", cwd=place)
    assert (wide.returncode, done.returncode) == (0, 0)
    assert "\x1b[" not in done.stdout + done.stderr
    assert done.stdout.split() == wide.stdout.split()
