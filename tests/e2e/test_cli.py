"""The command line, through every stage, on a model and rows that the test makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from builders import places
from builders.chats import write_lines
from builders.cli import Done, potstill, process
from builders.tiny import save_tiny

RECIPE = """\
version: 1
name: tiny
seed: 3
teacher: {model: teacher}
student: {from_teacher: {keep_layers: 2}}
data: {train: rows.jsonl, heldout_fraction: 0.5}
stages:
  - generate: {filters: null, max_new_tokens: 12, batch_rows: 16}
  - distill: {tokens_per_step: 96, learning_rate: 0.01, epochs: 4}
  - finetune: {tokens_per_step: 96, epochs: 1}
  - control: {tokens_per_step: 96, epochs: 1}
  - evaluate: {samples: 10, resamples: 200}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("e2e")
    save_tiny(folder / "teacher", layers=4)
    rows = [
        {"id": f"p{i}", "prompt": f"w{12 + i % 50} w{20 + i} w{(i * 7) % 90 + 12}", "family": f"f{i % 3}"}
        for i in range(64)
    ]
    write_lines(folder / "rows.jsonl", *rows)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def finished(place) -> Done:
    return process("run", "tiny.yaml", cwd=place)


def test_every_stage_runs_and_the_verdict_closes(finished, place):
    assert finished.returncode == 0, finished.stderr
    assert "KL(teacher‖student)" in finished.stdout
    assert "\r" not in finished.stderr
    run = place / "runs" / "tiny"
    names = {"generate", "distill", "finetune", "control", "evaluate"}
    assert {link.name for link in (run / "stages").iterdir()} == names
    assert (run / "report.html").stat().st_size < 1_000_000


def test_the_summary_has_every_block_and_a_reason_for_every_null(finished, place):
    summary = json.loads((place / "runs/tiny/summary.json").read_text())
    held = {row.id for row in places.read(place, "tiny.yaml").data.heldout}
    lines = map(json.loads, (place / "runs/tiny/stages/generate/answers.jsonl").read_text().splitlines())
    answered = [line["row_id"] for line in lines if line["row_id"] in held and line["text"].strip()]
    assert summary["after"]["forward_kl"]["n"] == len(answered) > 28
    assert len(held) == 32
    assert summary["before"]["forward_kl"]["low"] <= summary["before"]["forward_kl"]["value"]
    assert summary["teacher"]["params"] > summary["student"]["params"]
    assert summary["control"]["ppl"]["value"] > 1
    assert summary["train"]["steps"] >= 1

    def nulls(block, path=""):
        for key, value in block.items():
            if isinstance(value, dict):
                yield from nulls(value, f"{path}{key}.")
            elif value is None and f"{key}_reason" not in block and key != "ci95":
                yield path + key

    assert list(nulls(summary)) == []


def test_distilling_lowers_the_loss_that_it_logs(finished, place):
    lines = (place / "runs/tiny/stages/distill/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if json.loads(line)["event"] == "step"]
    assert losses[-1] < 0.8 * losses[0]
    validations = [json.loads(line) for line in lines if json.loads(line)["event"] == "validation"]
    assert {"loss", "forward_kl", "cross_entropy", "divergence"} <= validations[0].keys()


def test_the_student_loads_without_potstill_and_holds_nothing_else(finished, place):
    folder = place / "runs/tiny/student"
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.num_hidden_layers == 2
    assert model.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (folder / "model.safetensors").stat().st_size <= 1.05 * weights + 4096
    ids = tokenizer("w20 w21", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()


def test_a_finished_run_is_taken_from_the_store(finished, place):
    before = json.loads((place / "runs/tiny/summary.json").read_text())
    again = potstill("run", "tiny.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("unchanged, taken from") == 6
    assert json.loads((place / "runs/tiny/summary.json").read_text()) == before


def test_changing_one_stage_keeps_the_stages_before_it(finished, place):
    again = potstill("run", "tiny.yaml", "name=other", "distill.temperature=2.0", cwd=place)
    assert again.returncode == 0, again.stderr
    reused = [line.partition(": unchanged")[0] for line in again.stderr.splitlines() if "unchanged" in line]
    measured = [
        f"evaluate: {what}, {role}" for role in ("before", "control") for what in ("likelihood", "answers")
    ]
    assert reused == ["generate", "student", "control", "evaluate: answers, teacher", *measured]


def test_a_run_folder_continues_without_its_recipe(finished, place):
    again = potstill("run", "runs/tiny", "--json", cwd=place)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["summary"]["name"] == "tiny"
    assert "error" not in again.stderr


def test_the_report_is_rebuilt(finished, place):
    (place / "runs/tiny/report.html").unlink()
    again = potstill("report", "runs/tiny", cwd=place)
    assert again.returncode == 0, again.stderr
    assert (place / "runs/tiny/report.html").is_file()


def test_one_stage_alone_stops_after_it(place):
    only = potstill("run", "--until", "generate", "tiny.yaml", "name=only", "seed=9", "--json", cwd=place)
    assert only.returncode == 0, only.stderr
    assert {p.name for p in (place / "runs/only/stages").iterdir()} == {"generate"}
    assert not (place / "runs/only/student").exists()


def test_the_five_line_recipe_runs(place):
    (place / "five.yaml").write_text(
        "teacher: {model: teacher}\nstudent: {from_teacher: {keep_layers: 3}}\ndata: {train: rows.jsonl}\n"
    )
    done = potstill("run", "five.yaml", "generate.max_new_tokens=8", "distill.steps=3", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "runs/five/student/config.json").is_file()
    stages = {p.name for p in (place / "runs/five/stages").iterdir()}
    assert stages == {"generate", "distill", "evaluate"}
    summary = json.loads((place / "runs/five/summary.json").read_text())
    assert summary["after"]["forward_kl"]["value"] > 0


def test_an_existing_smaller_model_with_a_padded_head_learns(place):
    """Teacher rows 160 against student rows 128, one tokenizer of 128: only shared ids are compared."""
    from builders import tiny

    wide = place / "wide"
    tiny.tiny_model(vocab=160, layers=2, seed=5).save_pretrained(wide)
    tiny.tiny_tokenizer(128).save_pretrained(wide)
    save_tiny(place / "small", layers=1, seed=6)
    (place / "pair.yaml").write_text(
        "teacher: {model: wide}\nstudent: {model: small}\ndata: {train: rows.jsonl}\n"
        "stages:\n  - generate: {filters: null, max_new_tokens: 8}\n  - distill: {steps: 4, learning_rate: 0.01}\n"
        "  - evaluate: {metrics: [likelihood]}\n"
    )
    done = potstill("run", "pair.yaml", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert 0 < summary["after"]["forward_kl"]["value"] < 20


def test_rows_with_answers_train_without_a_generate_stage(place):
    rows = [{"prompt": f"w{20 + i}", "response": f"w{30 + i} w{40 + i % 9}"} for i in range(64)]
    write_lines(place / "answered.jsonl", *rows)
    (place / "answered.yaml").write_text(
        "teacher: {model: teacher}\nstudent: {from_teacher: {keep_layers: 3, by: uniform}}\n"
        "data: {train: answered.jsonl}\nstages:\n  - distill: {steps: 3, divergence: {jsd: {beta: 0.3}}, ce_weight: 0.2, temperature: 2}\n"
        "  - evaluate: {metrics: [likelihood, agreement]}\n"
    )
    done = potstill("run", "answered.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    stages = place / "runs/answered/stages"
    assert {p.name for p in stages.iterdir()} == {"distill", "evaluate"}
    events = map(json.loads, (stages / "distill/metrics.jsonl").read_text().splitlines())
    assert [e["step"] for e in events if e["event"] == "step"] == [1, 2, 3]


def test_prompt_only_rows_given_to_distill_say_that_answers_are_missing(place):
    (place / "bare.yaml").write_text(
        "teacher: {model: teacher}\nstudent: {from_teacher: {keep_layers: 3}}\ndata: {train: rows.jsonl}\n"
        "stages: [distill, evaluate]\n"
    )
    done = potstill("run", "bare.yaml", cwd=place)
    assert done.returncode == 2
    assert "needs an assistant turn" in done.stderr
    assert "generate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.temprature=2", "did you mean temperature"),
        ("distill.temperature=0", "stages.distill.temperature"),
        ("teacher.model=./nowhere", "no model at ./nowhere"),
        ("data.train=missing.jsonl", "missing.jsonl"),
        ("distill.divergence=froward_kl", "forward_kl"),
    ],
)
def test_a_wrong_setting_exits_2_with_a_way_out_and_no_traceback(place, override, words):
    done = potstill("run", "tiny.yaml", override, cwd=place)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_are_json_on_request(place):
    done = potstill("check", "tiny.yaml", "distill.temprature=2", "--json", cwd=place)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["exit_code"]) == ("recipe", 2)
    assert "temprature" in error["message"]


def test_check_reads_everything_and_trains_nothing(place):
    before = sorted((place / "runs").rglob("*"))
    done = potstill("check", "tiny.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert torch.is_grad_enabled()
    assert "held out" in done.stdout
    assert "stages.distill.micro_batch_tokens = " in done.stdout
    assert done.stdout.count("⟦the teacher's answer⟧") == 3
    as_json = potstill("check", "tiny.yaml", "--json", cwd=place)
    assert as_json.returncode == 0, as_json.stderr
    assert json.loads(as_json.stdout)["passed"] is True
    assert sorted((place / "runs").rglob("*")) == before


def test_check_marks_the_scored_tokens_of_answered_rows(place):
    rows = [{"prompt": f"w{40 + i}", "response": "w50"} for i in range(24)]
    write_lines(place / "marked.jsonl", *rows)
    (place / "marked.yaml").write_text(
        "teacher: {model: teacher}\nstudent: {model: teacher}\ndata: {train: marked.jsonl}\nmethod: sft\n"
    )
    done = potstill("check", "marked.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "⟦w50 </s>⟧" in done.stdout
    assert "Supervised fine-tuning" in done.stdout


def test_a_second_process_on_a_running_run_is_refused(finished, place):
    import fcntl

    with (place / "runs/tiny/.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = potstill("run", "tiny.yaml", cwd=place)
    assert done.returncode == 2
    assert "still running" in done.stderr


def test_two_stages_are_measured_before_and_after_each(finished, place):
    """Held-out KL and the task metric of distill and of finetune, joined where one ends and the next begins."""
    run = place / "runs/tiny"
    summary = json.loads((run / "summary.json").read_text())
    first, second = summary["by_stage"]
    assert (first["stage"], second["stage"]) == ("distill", "finetune")
    for name in ("forward_kl", "agreement", "ppl", "rouge_l"):
        values = [stage[side][name]["value"] for stage in (first, second) for side in ("before", "after")]
        assert values[1] == values[2]
        assert (values[0], values[3]) == (
            summary["before"][name]["value"],
            summary["after"][name]["value"],
        )
    assert first["after"]["forward_kl"]["value"] != second["after"]["forward_kl"]["value"]
    page = (run / "report.html").read_text()
    assert "Stage by stage" in page


def test_packed_training_ends_where_padded_training_ends(place):
    """The same recipe with its rows end to end: one loss curve, without padding and up to rounding in fp32."""
    for name, packing in (("packed", "true"), ("padded", "false")):
        exact = ("teacher.dtype=float32", "distill.precision=float32", f"distill.packing={packing}")
        done = potstill("run", "--until", "distill", "tiny.yaml", f"name={name}", *exact, cwd=place)
        assert done.returncode == 0, done.stderr

    def losses(run: str) -> list[float]:
        events = (place / f"runs/{run}/stages/distill/metrics.jsonl").read_text().splitlines()
        return [e["loss"] for e in map(json.loads, events) if e["event"] == "step"]

    packed, padded = losses("packed"), losses("padded")
    assert len(packed) == len(padded)
    assert packed == pytest.approx(padded, rel=1e-3)
    assert packed != padded, "rounding shows that the rows were laid out in another way"
