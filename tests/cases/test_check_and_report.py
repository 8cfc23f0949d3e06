"""What check promises and a report tells, against what the run does."""

from __future__ import annotations

import json

import pytest

from cases import places
from e2e.cli import potstill
from potstill.check import reading
from potstill.runs import setup
from tiny import save_tiny, tiny_tokenizer


@pytest.mark.parametrize(
    "change", ["finetune.data=[nope.jsonl]", "data.weight=wieght", "student.from_teacher={keep_layers: 9}"]
)
def test_check_lets_through_what_fails_after_hours(tmp_path, change):
    rows = [row | {"weight": 1} for row in places.answered(60)]
    stages = (
        "[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}, {finetune: {data: rows.jsonl, steps: 1}}]"
    )
    places.write(tmp_path, rows, data="{train: rows.jsonl, weight: weight}", stages=stages)
    done = potstill("check", "r.yaml", change, cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_check_names_another_learning_rate_than_the_run(tmp_path):
    save_tiny(tmp_path / "small", seed=3)
    stages = "[{distill: {steps: 1}}, {distill: {name: again, steps: 1}}]"
    places.write(tmp_path, places.answered(60), student="{model: small}", stages=stages)
    parts = setup.compose(setup.open_recipe(tmp_path / "r.yaml"))
    told = {d.path: d.value for d in reading.read(parts)[0].defaults}
    assert told["stages.distill.learning_rate"] == 1e-4
    places.write(tmp_path, places.answered(60), stages=stages)
    parts = setup.compose(setup.open_recipe(tmp_path / "r.yaml"))
    told = {d.path: d.value for d in reading.read(parts)[0].defaults}
    assert told["stages.distill.learning_rate"] == 5e-4
    assert told["stages.again.learning_rate"] != 5e-4


@pytest.mark.parametrize("how", ["file", "teacher's"])
def test_the_student_ships_without_the_template_it_learnt(tmp_path, how):
    from transformers import AutoTokenizer

    template = tiny_tokenizer().chat_template + "{# mine #}"
    recipe = {"stages": "[{distill: {steps: 1}}]"}
    if how == "file":
        (tmp_path / "mine.jinja").write_text(template)
        recipe |= {"data": "{train: rows.jsonl, template: {file: mine.jinja}}"}
    else:
        save_tiny(tmp_path / "small", seed=3)
        (tmp_path / "small/chat_template.jinja").unlink()
        tiny_tokenizer(template=None).save_pretrained(tmp_path / "small")
        recipe |= {"student": "{model: small}"}
        template = tiny_tokenizer().chat_template
    places.write(tmp_path, places.answered(60), **recipe)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert AutoTokenizer.from_pretrained(tmp_path / "runs/r/student").chat_template == template


def test_lower_micro_batches_start_a_training_anew(tmp_path):
    places.write(tmp_path, places.answered(60))
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    again = potstill(
        "run", "r.yaml", "distill.micro_batch_tokens=24", "distill.checkpoint_every=1", cwd=tmp_path
    )
    assert "distill: unchanged" in again.stderr


def test_a_students_dtype_is_taken_and_ignored(tmp_path):
    places.write(tmp_path, student="{from_teacher: {keep_layers: 1, by: uniform}, dtype: float16}")
    done = potstill("check", "r.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "student.dtype" in done.stderr


@pytest.mark.parametrize(
    ("written", "unseen"), [("False", False), ("no", False), ("0", False), ("true", True), ("1", True)]
)
def test_words_of_truth_in_a_table_are_all_true(tmp_path, written, unseen):
    held = "id,prompt,response,family,unseen\n" + "".join(
        f"h{i},w{40 + i} w50,w60,old,{written}\n" for i in range(3)
    )
    places.write(
        tmp_path,
        places.answered(60),
        data="{train: rows.jsonl, heldout: held.csv}",
        stages="[{distill: {steps: 1}}, {evaluate: {}}]",
    )
    (tmp_path / "held.csv").write_text(held)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    read = tmp_path / "runs/r/stages/evaluate/samples.jsonl"
    assert {json.loads(line)["unseen"] for line in read.read_text().splitlines()} == {unseen}
    (tmp_path / "held.csv").write_text(held.replace(",old,", ",new,"))
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert {json.loads(line)["family"] for line in read.read_text().splitlines()} == {"new"}


def test_a_figure_that_nobody_asked_for_is_missing_instead_of_null(tmp_path):
    places.write(
        tmp_path, places.answered(60), stages="[{distill: {steps: 1}}, {evaluate: {metrics: [rouge_l]}}]"
    )
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    after = places.summary(tmp_path)["after"]
    assert after["forward_kl"] is None
    assert "does not ask for likelihood" in after["forward_kl_reason"]
    assert after["rouge_l"]["n"] == after["n"] > 0


def test_ids_that_start_again_in_each_file_are_called_rows_in_both(tmp_path):
    held = [{"id": f"p{i}", "prompt": f"w{40 + i} w51", "response": "w60"} for i in range(5)]
    places.write(tmp_path, places.answered(60), data="{train: rows.jsonl, heldout: held.jsonl}")
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    done = potstill("check", "r.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "two different prompts" in done.stderr


def test_a_report_trains_what_is_not_finished(tmp_path):
    places.write(
        tmp_path, places.prompts(60), stages="[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}]"
    )
    assert potstill("generate", "r.yaml", cwd=tmp_path).returncode == 0
    before = json.loads((tmp_path / "runs/r/run.json").read_text())
    done = potstill("report", "runs/r", cwd=tmp_path)
    assert done.returncode == 2
    assert "the stage student is not finished" in done.stderr
    assert not list((tmp_path / "runs/.store").glob("*train*"))
    assert json.loads((tmp_path / "runs/r/run.json").read_text())["status"] == before["status"]
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    done = potstill("report", "runs/r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report.html" not in done.stdout  # nothing was evaluated


def test_a_part_of_a_finished_run_empties_its_summary(tmp_path):
    stages = "[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {}}]"
    places.write(tmp_path, places.prompts(80), stages=stages)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    whole = places.summary(tmp_path)
    assert potstill("generate", "r.yaml", cwd=tmp_path).returncode == 0
    assert places.summary(tmp_path) == whole
    rows = places.prompts(80)
    rows[0] = {"id": "p0", "prompt": "w99 w98 w97"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert potstill("distill", "r.yaml", cwd=tmp_path).returncode == 0
    assert places.summary(tmp_path)["artifacts"]["distill"] != whole["artifacts"]["distill"]
    assert not (tmp_path / "runs/r/report.html").exists()
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert potstill("distill", "r.yaml", "distill.steps=2", cwd=tmp_path).returncode == 0
    assert places.summary(tmp_path)["after"]["forward_kl"] is None
    assert not (tmp_path / "runs/r/report.html").exists()


def test_a_stage_that_the_recipe_has_no_more_stays_linked(tmp_path):
    places.write(tmp_path, places.answered(60), stages="[{distill: {steps: 1}}, {finetune: {steps: 1}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    places.write(tmp_path, places.answered(60), stages="[{finetune: {steps: 1}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert [link.name for link in (tmp_path / "runs/r/stages").iterdir()] == ["finetune"]


def test_prompts_that_are_measured_on_count_as_lost_to_training(tmp_path):
    held = [{"prompt": " ".join(["w60"] * (120 if i % 2 else 2)) + f" w{20 + i}"} for i in range(20)]
    places.write(
        tmp_path,
        places.prompts(30),
        data="{train: rows.jsonl, heldout: held.jsonl, max_length: 64}",
        stages="[{generate: {max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {}}]",
    )
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert places.summary(tmp_path)["after"]["n"] == 10
    assert "too long" not in (tmp_path / "runs/r/report.html").read_text()


def test_patience_without_rows_to_choose_by_says_nothing(tmp_path):
    places.write(tmp_path, places.answered(3), stages="[{distill: {steps: 1, patience: 1}}]")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "patience and best_by have no effect" in done.stderr
