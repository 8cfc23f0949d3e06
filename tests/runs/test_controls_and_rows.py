"""Runs that share a store, stages that share a budget, rows that share a prompt."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys

import pytest

from builders import places
from builders.cli import potstill
from potstill.check import reading
from potstill.data.answers import by_prompt
from potstill.data.questions import Question
from potstill.data.rows import Row
from potstill.evaluate import rouge_l
from potstill.evaluate.subject import Answer, Subject
from potstill.runs import setup
from potstill.stages import _artifact
from potstill.store import artifacts
from potstill.store.folder import RunDir
from potstill.types import Example

THREE = "[{distill: {steps: 3, learning_rate: 0.01}}, {finetune: {steps: 2}}, {control: {}}, {evaluate: {}}]"


def test_two_runs_build_one_artifact_once(tmp_path):
    """The second waits for the first, and takes what it made."""
    places.write(tmp_path, places.prompts(200), stages="[{generate: {max_new_tokens: 48}}]")
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


def test_time_before_an_interruption_is_counted(tmp_path, monkeypatch):
    class Quiet:
        def say(self, text): ...

    class World:
        console = Quiet()

    now = iter([0.0, 5.0, 100.0, 102.0])
    monkeypatch.setattr(_artifact.time, "monotonic", lambda: next(now))

    def stopped(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _artifact._timed(tmp_path, "train", World(), stopped)
    assert _artifact._timed(tmp_path, "train", World(), lambda folder: {})["seconds"] == 7.0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        ("你好世界", "你好", 2 / 3),
        ("Привет мир", "Привет, мир!", 1.0),
        ("Ответ: 42", "Совсем другое 42", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("สวัสดี", "สวัสดี", 1.0),
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),
        ("I love it ❤️", "I love it", 1.0),
    ],
)
def test_rouge_reads_the_words_of_any_script(text, other, same):
    asked = [Question("a", (), (), "", other, 1)]
    (figure,) = rouge_l.measure(Subject("after", questions=asked, answers=[Answer("a", text, 1, True)]))
    assert figure.value == pytest.approx(same)


def test_words_of_english_are_those_of_rouge_score():
    from rouge_score.tokenizers import DefaultTokenizer

    text = "The runners' 3 dogs_were running, quickly: re-running (x2)!\nUPPER cases were studied."
    assert rouge_l.Words().tokenize(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    place = places.write(tmp_path_factory.mktemp("three"), places.answered(60), stages=THREE)
    done = potstill("run", "r.yaml", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_the_control_has_the_budget_of_its_twin(three):
    twin, control = places.steps(three, "distill"), places.steps(three, "control")
    assert [s["tokens"] for s in control] == [s["tokens"] for s in twin]
    assert [s["learning_rate"] for s in control] == [s["learning_rate"] for s in twin]


def test_check_names_the_twin_for_the_budget_of_the_control(three):
    told = {d.path: d.value for d in reading.read(places.subject(three))[0].defaults}
    assert told["stages.control"] == "as distill"


def test_a_control_keeps_its_own_settings(tmp_path):
    stages = "[{distill: {steps: 3, learning_rate: 0.01}}, {control: {steps: 1, learning_rate: 0.5}}]"
    places.write(tmp_path, places.answered(60), stages=stages)
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    (only,) = places.steps(tmp_path, "control")
    assert only["learning_rate"] == 0.5


def test_a_control_of_its_own_length_has_automatic_intervals(tmp_path):
    stages = "[{distill: {steps: 12, schedule: linear}}, {control: {steps: 120}}]"
    places.write(tmp_path, places.answered(60), stages=stages)
    opened = setup.open_recipe(tmp_path / "r.yaml")
    distill, control = opened.recipe.stages
    twin = distill.model_copy(update={"validate_every": 2, "checkpoint_every": 1, "learning_rate": 5e-6})
    alike, _ = control.completed(opened.recipe.stages, {"distill": twin})
    assert (alike.steps, alike.schedule) == (120, "linear")
    assert (alike.validate_every, alike.checkpoint_every, alike.learning_rate) == ("auto", "auto", "auto")


def test_a_control_is_no_twin_of_a_stage_on_other_rows(tmp_path):
    stages = "[{finetune: {data: rows.jsonl, steps: 2}}, {control: {}}]"
    places.write(tmp_path, places.answered(60), stages=stages)
    stages = setup.open_recipe(tmp_path / "r.yaml").recipe.stages
    assert stages[1].of(stages) == ""


def test_the_summary_leaves_the_controls_training_out(three):
    found = places.summary(three)["train"]
    made = places.steps(three, "distill") + places.steps(three, "finetune")
    assert found["steps"] == 5
    assert found["tokens"] == sum(s["tokens"] for s in made)
    assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in made))
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])


def test_several_answers_to_one_prompt_count_as_one_prompt(tmp_path):
    rows = places.answered(60)
    held = [
        {
            "id": f"h{i}-{j}",
            "prompt": f"W{40 + i}  w50" if j % 2 else f"w{40 + i} w50",
            "response": f"w{60 + j}",
        }
        for i in range(4)
        for j in range(3)
    ]
    places.write(
        tmp_path,
        rows,
        data="{train: rows.jsonl, heldout: held.jsonl}",
        stages="[{distill: {steps: 1}}, {evaluate: {samples: 100}}]",
    )
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = places.summary(tmp_path)["after"]
    assert {after[key]["n"] for key in ("forward_kl", "ppl", "agreement", "rouge_l")} == {4}
    samples = (tmp_path / "runs/r/stages/evaluate/samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["row_id"] for line in samples] == [f"h{i}-0" for i in range(4)]


def test_a_prompt_whose_first_row_was_dropped_has_the_id_of_the_next_row():
    rows = [
        Row(name, ({"role": "user", "content": text},))
        for name, text in (("a", "W5 w6"), ("b", "w5  w6"), ("c", "w5 w6"))
    ]
    kept = [Example(name, (1, 5), (False, True)) for name in ("b", "c")]
    assert [e.row_id for e in by_prompt(kept, rows)] == ["b", "b"]


def test_finetuning_runs_without_a_row_to_choose_by(tmp_path):
    places.write(tmp_path, places.answered(60), data="{train: rows.jsonl, max_length: 40}")
    task = [{"prompt": f"w{20 + i} w9", "response": "w100"} for i in range(8)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    stages = "[{distill: {steps: 1}}, {finetune: {data: task.jsonl, steps: 1}}]"
    places.write(tmp_path, places.answered(60), data="{train: rows.jsonl, max_length: 40}", stages=stages)
    chosen = places.read(tmp_path).data.of_stages["finetune"].validation
    for row in task:
        if any(row["prompt"] == one.prompt_text for one in chosen):
            row["response"] = " ".join(["w100"] * 60)
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_finetune_data_leaves_out_held_out_prompts(tmp_path):
    rows = places.answered(60)
    stages = "[{distill: {steps: 1}}, {finetune: {data: rows.jsonl, epochs: 1}}, {evaluate: {}}]"
    places.write(tmp_path, rows, stages=stages)
    parts = places.read(tmp_path)
    held = {row.prompt_text for row in parts.data.heldout}
    own = parts.data.of_stages["finetune"]
    train, chosen = own.train, own.validation
    assert held
    assert not held & {row.prompt_text for row in train + chosen}
    assert chosen
    assert len(train) + len(chosen) + len(held) == 60
    assert any("rows of finetune have held-out prompts" in note for note in parts.notes)


def test_finetune_data_chooses_its_best_weights_by_its_own_rows(tmp_path):
    places.write(
        tmp_path,
        places.answered(60),
        stages="[{distill: {steps: 1}}, {finetune: {data: task.jsonl, steps: 3, learning_rate: 0.01}}]",
    )
    task = [{"prompt": f"w{90 + i % 9} w{20 + i}", "response": "w100 w101 w102"} for i in range(60)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task))
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    events = (tmp_path / "runs/r/stages/finetune/metrics.jsonl").read_text().splitlines()
    losses = [e["loss"] for e in map(json.loads, events) if e["event"] == "validation"]
    assert losses[-1] < losses[0]
    assert "no validation was better" not in done.stderr


def test_weights_worse_than_the_start_are_reported(tmp_path):
    stages = "[{distill: {steps: 2, learning_rate: 1.0, validate_every: 2, warmup: 0}}]"
    places.write(tmp_path, places.answered(80), stages=stages)
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no validation was better than before training" in done.stderr
    assert places.summary(tmp_path)["train"]["best_step"] == 2
