"""What cannot work is refused in one sentence with the way out and the right exit code, before heavy work starts."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import tiny
from e2e.cli import potstill
from potstill.cli import machine_error
from potstill.stages import train as train_stage


@pytest.fixture
def place(tmp_path) -> Path:
    tiny.save_tiny(tmp_path / "teacher", layers=3)
    rows = [json.dumps({"prompt": f"w{20 + i}", "response": f"w{30 + i} w{50 + i % 9}"}) for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    recipe(tmp_path)
    return tmp_path


def recipe(place: Path, **changes: str) -> None:
    parts = {
        "teacher": "{model: teacher}", "student": "{from_teacher: {keep_layers: 2}}", "data": "{train: rows.jsonl}",
        "stages": "[{distill: {steps: 2}}, {evaluate: {metrics: [likelihood]}}]",
    } | changes  # fmt: skip
    (place / "r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in parts.items()))


def refused(place: Path, words: str, code: int = 2) -> str:
    """Both `check` and `run` refuse with this code and these words, and without a traceback."""
    told = ""
    for command in (("check", "r.yaml"), ("run", "r.yaml")):
        done = potstill(*command, cwd=place)
        assert done.returncode == code, (command, done.stderr)
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        told = done.stderr
    return told


def test_pickled_weights(place):
    weights = place / "teacher" / "model.safetensors"
    weights.rename(place / "teacher" / "pytorch_model.bin")
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "only pickled weights" in done.stderr


def test_remote_code_without_a_pinned_commit(place):
    recipe(place, teacher="{model: some/model, trust_remote_code: true, revision: main}")
    refused(place, "40 hexadecimal digits")


def test_an_encoder(place):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=64
    )
    BertModel(config).save_pretrained(place / "bert")
    tiny.tiny_tokenizer().save_pretrained(place / "bert")
    recipe(place, teacher="{model: bert}")
    refused(place, "not a decoder-only text model")


def test_a_hub_name_without_a_network(place):
    recipe(place, teacher="{model: no-such/model-anywhere}")
    told = refused(place, "cannot load the model no-such/model-anywhere")
    assert "never replaces one model by another" in told


def test_a_weight_that_is_missing(place):
    file = place / "teacher" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "model.norm.weight" in done.stderr


def test_chat_rows_without_a_template(place):
    tiny.tiny_tokenizer(template=None).save_pretrained(place / "teacher")
    (place / "teacher" / "chat_template.jinja").unlink(missing_ok=True)
    refused(place, "template")


def test_vocabularies_that_differ(place):
    tiny.save_tiny(place / "other", layers=1)
    tokenizer = tiny.tiny_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"]
    vocabulary["w20"], vocabulary["w21"] = vocabulary["w21"], vocabulary["w20"]
    file = place / "other" / "tokenizer.json"
    file.write_text(json.dumps(core))
    recipe(place, student="{model: other}")
    told = refused(
        place, "do not share a vocabulary: id 20 is 'w20' for the teacher and 'w21' for the student"
    )
    assert "generate, finetune" in told


def test_a_file_without_a_usable_row(place):
    (place / "rows.jsonl").write_text("\n \n\n")
    refused(place, "rows.jsonl")


def test_a_broken_line_names_file_and_line(place):
    lines = (place / "rows.jsonl").read_text().splitlines()
    lines[3] = '{"prompt": "w1",'
    (place / "rows.jsonl").write_text("\n".join(lines))
    told = refused(place, "rows.jsonl:4")
    assert "on_bad_row: skip" in told
    recipe(place, data="{train: rows.jsonl, on_bad_row: skip}")
    assert potstill("check", "--quick", "r.yaml", cwd=place).returncode == 0


def test_rows_that_are_all_too_long(place):
    recipe(place, data="{train: rows.jsonl, max_length: 3}")
    refused(place, "rows have no target")


def test_more_layers_than_the_teacher_has(place):
    recipe(place, student="{from_teacher: {keep_layers: 9}}")
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "the teacher has 3" in done.stderr


def test_a_teacher_with_a_broken_weight(place):
    file = place / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 2
    assert "not finite" in done.stderr


def test_training_that_stops_itself_exits_6(place, monkeypatch):
    from potstill.errors import TrainingStopped

    def stop(*args, **kw):
        raise TrainingStopped("the loss is nan on rows r1.", fix="Lower the learning rate.")

    monkeypatch.setattr(train_stage, "train", stop)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 6
    assert "rows r1" in done.stderr
    state = json.loads((place / "runs/r/run.json").read_text())
    assert (state["status"], state["error"]["code"]) == ("failed", "training")


def test_a_place_that_cannot_be_written_exits_3(place):
    (place / "runs").write_text("a file where the folder should be")
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 3
    assert "runs" in done.stderr


def test_a_full_disk_exits_3_and_keeps_what_is_done(place, monkeypatch):
    def full(*args, **kw):
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    with monkeypatch.context() as patch:
        patch.setattr(train_stage, "append_line", full)
        done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 3
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert potstill("run", "r.yaml", cwd=place).returncode == 0


def test_errors_that_are_not_the_machines_stay_bugs():
    assert machine_error(OSError(errno.EINVAL, "odd")) is None
    assert machine_error(MemoryError()).exit_code == 3


def test_status_says_where_a_run_stands(place):
    assert potstill("status", "runs/r", cwd=place).returncode == 2
    assert potstill("run", "r.yaml", cwd=place).returncode == 0
    done = potstill("status", "runs/r", cwd=place)
    assert done.stdout.startswith("runs/r: finished")
    state = place / "runs/r/run.json"
    told = json.loads(state.read_text()) | {"status": "running", "stage": "distill"}
    metrics = place / "runs/r/stages/distill/metrics.jsonl"
    state.write_text(json.dumps(told | {"training": {"metrics": str(metrics), "steps": 2}}))
    died = json.loads(potstill("status", "runs/r", "--json", cwd=place).stdout)
    assert died["state"] == "died"
    assert died["step"] == 2
    assert "ended without a word after step 2" in died["hint"]
    again = potstill("run", "r.yaml", cwd=place)
    assert "ended without a word after step 2" in again.stderr


def test_init_writes_a_recipe_that_is_read_and_never_overwrites(place):
    from potstill.recipe.recipe import read_recipe

    assert potstill("init", "mine.yaml", "--train", "rows.jsonl", cwd=place).returncode == 0
    assert read_recipe(place / "mine.yaml").stages[0].verb == "generate"
    assert "exists already" in potstill("init", "mine.yaml", cwd=place).stderr


def test_a_narrow_terminal_and_no_color_lose_nothing(place, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    done = potstill("check", "--quick", "r.yaml", cwd=place)
    assert done.returncode == 0
    assert "\x1b[" not in done.stdout + done.stderr
    assert torch.is_grad_enabled()
