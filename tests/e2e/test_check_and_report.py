"""What check promises and what a report states agree with the run."""

from __future__ import annotations

import json

import pytest

from builders import places
from builders.chats import write_lines
from builders.cli import potstill
from builders.tiny import save_tiny, tiny_tokenizer
from potstill.report import summary as report_summary


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("finetune.data=[nope.jsonl]", "nope.jsonl"),
        ("data.weight=wieght", "wieght"),
        ("student.from_teacher={keep_layers: 9}", "student.from_teacher"),
    ],
)
def test_check_refuses_what_the_run_could_not_finish(tmp_path, change, words):
    rows = [row | {"weight": 1} for row in places.answered(60)]
    stages = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, {finetune: {data: rows.jsonl, steps: 1}}]"
    places.write(tmp_path, rows, data="{train: rows.jsonl, weight: weight}", stages=stages)
    done = potstill("check", "r.yaml", change, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def learning_rates(place) -> dict[str, object]:
    paths = ((default.path.split("."), default.value) for default in places.checked(place).defaults)
    return {path[1]: value for path, value in paths if path[-1] == "learning_rate"}


def test_check_states_the_learning_rate_of_the_run(tmp_path):
    save_tiny(tmp_path / "small", seed=3)
    stages = "[{distill: {steps: 1}}, {distill: {name: again, steps: 1}}]"
    places.write(tmp_path, places.answered(60), student="{model: small}", stages=stages)
    assert learning_rates(tmp_path)["distill"] == 1e-4
    places.write(tmp_path, places.answered(60), stages=stages)
    # The second stage starts from no fresh cut, and of unknown size before the run.
    assert learning_rates(tmp_path) == {"distill": 5e-4, "again": 1e-5}


@pytest.mark.parametrize("how", ["file", "teacher's"])
def test_the_student_ships_with_the_template_it_learnt(tmp_path, how):
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


def test_a_finished_training_is_kept_under_lower_micro_batches(tmp_path):
    places.write(tmp_path, places.answered(60))
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    again = potstill(
        "run", "r.yaml", "distill.micro_batch_tokens=24", "distill.checkpoint_every=1", cwd=tmp_path
    )
    assert again.returncode == 0, again.stderr
    assert "distill: unchanged" in again.stderr


def test_a_dtype_for_a_cut_student_is_refused(tmp_path):
    places.write(tmp_path, student="{from_teacher: {keep_layers: 1, by: uniform}, dtype: float16}")
    done = potstill("check", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "student.dtype" in done.stderr


def test_words_for_true_and_false_in_a_table_are_read(tmp_path):
    words = {"False": False, "no": False, "0": False, "true": True, "1": True}
    heldout = "id,prompt,response,family,unseen\n" + "".join(
        f"h{i},w{40 + i} w50,w60,old,{written}\n" for i, written in enumerate(words)
    )
    places.write(
        tmp_path,
        places.answered(60),
        data="{train: rows.jsonl, heldout: held.csv}",
        stages="[{distill: {steps: 1}}, {evaluate: {}}]",
    )
    (tmp_path / "held.csv").write_text(heldout)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    read = tmp_path / "runs/r/stages/evaluate/samples.jsonl"
    unseen = {line["row_id"]: line["unseen"] for line in map(json.loads, read.read_text().splitlines())}
    assert unseen == {f"h{i}": value for i, value in enumerate(words.values())}
    (tmp_path / "held.csv").write_text(heldout.replace(",old,", ",new,"))
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert {json.loads(line)["family"] for line in read.read_text().splitlines()} == {"new"}


def test_a_figure_that_was_not_requested_is_null_with_a_reason(tmp_path):
    places.write(
        tmp_path, places.answered(60), stages="[{distill: {steps: 1}}, {evaluate: {metrics: [rouge_l]}}]"
    )
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    after = places.summary(tmp_path)["after"]
    assert after["forward_kl"] is None
    assert "does not ask for likelihood" in after["forward_kl_reason"]
    assert after["rouge_l"]["n"] == after["n"] > 0


def test_ids_may_begin_again_in_the_held_out_file(tmp_path):
    heldout = [{"id": f"p{i}", "prompt": f"w{40 + i} w51", "response": "w60"} for i in range(5)]
    places.write(tmp_path, places.answered(60), data="{train: rows.jsonl, heldout: held.jsonl}")
    write_lines(tmp_path / "held.jsonl", *heldout)
    done = potstill("check", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 held out" in done.stdout


def test_a_report_of_an_unfinished_run_is_refused_and_trains_nothing(tmp_path):
    places.write(
        tmp_path,
        places.prompts(60),
        stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]",
    )
    assert potstill("run", "--until", "generate", "r.yaml", cwd=tmp_path).returncode == 0
    before = json.loads((tmp_path / "runs/r/run.json").read_text())
    done = potstill("report", "runs/r", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not finished with the recipe in its folder" in done.stderr
    assert "potstill run" in done.stderr
    assert not list((tmp_path / "runs/.store").glob("*train*"))
    assert json.loads((tmp_path / "runs/r/run.json").read_text())["status"] == before["status"]
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    done = potstill("report", "runs/r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report.html" not in done.stdout  # nothing was evaluated


def test_one_stage_alone_leaves_a_true_summary(tmp_path):
    stages = "[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {}}]"
    places.write(tmp_path, places.prompts(80), stages=stages)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    whole = places.summary(tmp_path)
    assert potstill("run", "--until", "generate", "r.yaml", cwd=tmp_path).returncode == 0
    assert places.summary(tmp_path) == whole
    rows = places.prompts(80)
    rows[0] = {"id": "p0", "prompt": "w99 w98 w97"}
    write_lines(tmp_path / "rows.jsonl", *rows)
    assert potstill("run", "--until", "distill", "r.yaml", cwd=tmp_path).returncode == 0
    assert places.summary(tmp_path)["artifacts"]["distill"] != whole["artifacts"]["distill"]
    assert not (tmp_path / "runs/r/report.html").exists()
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert potstill("run", "--until", "distill", "r.yaml", "distill.steps=2", cwd=tmp_path).returncode == 0
    assert places.summary(tmp_path)["after"]["forward_kl"] is None
    assert not (tmp_path / "runs/r/report.html").exists()


def test_links_of_stages_that_left_the_recipe_are_removed(tmp_path):
    places.write(tmp_path, places.answered(60), stages="[{distill: {steps: 1}}, {finetune: {steps: 1}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    places.write(tmp_path, places.answered(60), stages="[{finetune: {steps: 1}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert [link.name for link in (tmp_path / "runs/r/stages").iterdir()] == ["finetune"]


def test_held_out_prompts_do_not_count_as_lost_to_training(tmp_path):
    heldout = [{"prompt": " ".join(["w60"] * (120 if i % 2 else 2)) + f" w{20 + i}"} for i in range(20)]
    places.write(
        tmp_path,
        places.prompts(30),
        data="{train: rows.jsonl, heldout: held.jsonl, max_length: 64, on_bad_row: skip}",
        stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}, {evaluate: {}}]",
    )
    write_lines(tmp_path / "held.jsonl", *heldout)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert places.summary(tmp_path)["after"]["n"] == 10
    page = (tmp_path / "runs/r/report.html").read_text()
    assert "10 prompt too long. Its figures are of the others." in page
    assert page.count("too long") == 1  # and not among what training lost


def test_patience_without_validation_rows_is_reported(tmp_path):
    places.write(tmp_path, places.answered(3), stages="[{distill: {steps: 1, patience: 1}}]")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "patience and best_by have no effect" in done.stderr


def test_a_rebuilt_report_keeps_day_and_machine_of_its_figures(tmp_path, monkeypatch):
    places.write(
        tmp_path,
        places.prompts(80),
        stages="[{generate: {filters: null, max_new_tokens: 2}}, {distill: {steps: 1}}, {evaluate: {}}]",
    )
    with monkeypatch.context() as patch:
        patch.setattr(report_summary, "machine", lambda: "another machine")
        assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    summary = places.summary(tmp_path)
    assert summary["data"]["train"]["rows"] > 0
    for command in (["report", "runs/r"], ["run", "r.yaml"]):
        assert potstill(*command, cwd=tmp_path).returncode == 0
        assert places.summary(tmp_path)["made"] == summary["made"]
        assert "on another machine" in (tmp_path / "runs/r/report.html").read_text()
