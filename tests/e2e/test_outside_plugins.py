"""Every family takes a plug-in from outside the package: named in a recipe, it runs and is part of the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import places
from builders.cli import potstill
from builders.tiny import save_tiny

OUTSIDE = "builders.outside"
MEASURE = "{evaluate: {samples: 4, max_new_tokens: 4, resamples: 100}}"


def run(place: Path, command: str = "run") -> str:
    done = potstill(command, "r.yaml", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_teacher_without_weights_trains_and_measures_a_student(tmp_path):
    """Training and evaluation see the seam alone: signals, a reader and a fingerprint."""
    save_tiny(tmp_path / "small", layers=1, seed=3)
    distill = "{distill: {steps: 12, learning_rate: 0.01, tokens_per_step: 64}}"
    places.write(
        tmp_path,
        teacher=f"{{'{OUTSIDE}.teacher:bigram': {{tokenizer: teacher}}}}",
        student="{model: small}",
        stages=f"[{distill}, {MEASURE}]",
    )
    run(tmp_path, "check")
    run(tmp_path)
    summary = places.summary(tmp_path)
    before, after = summary["before"]["forward_kl"], summary["after"]["forward_kl"]
    assert after["value"] < 0.9 * before["value"]
    assert summary["teacher"]["name"] == "a table of pairs"
    assert summary["teacher"]["params"] is None
    assert "rouge_l" not in summary["reference"]
    assert summary["after"]["rouge_l"]["n"] == 4


def test_a_teacher_without_a_whole_distribution_trains_and_its_loss_is_not_claimed(tmp_path):
    save_tiny(tmp_path / "small", layers=1, seed=3)
    places.write(
        tmp_path,
        teacher=f"{{'{OUTSIDE}.teacher:bigram': {{tokenizer: teacher, keep: 8}}}}",
        student="{model: small}",
        stages="[{distill: {steps: 12, learning_rate: 0.01, tokens_per_step: 64}}]",
    )
    assert "not measured; this teacher gives no whole distribution" in run(tmp_path, "check")
    run(tmp_path)
    losses = [step["loss"] for step in places.steps(tmp_path, "distill")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_teacher_that_writes_no_text_is_refused_by_what_it_says_of_itself(tmp_path):
    save_tiny(tmp_path / "small", layers=1)
    places.write(
        tmp_path,
        teacher=f"{{'{OUTSIDE}.teacher:bigram': {{tokenizer: teacher}}}}",
        student="{model: small}",
        stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]",
    )
    for command in ("check", "run"):
        done = potstill(command, "r.yaml", cwd=tmp_path)
        assert done.returncode == 2
        assert "stages.generate: needs the teacher's text, and this teacher writes no text." in done.stderr


def test_a_cut_of_a_teacher_without_weights_is_refused(tmp_path):
    places.write(tmp_path, teacher=f"{{'{OUTSIDE}.teacher:bigram': {{tokenizer: teacher}}}}")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "cuts the teacher, and its weights are not in this process." in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        f"divergence: {{'{OUTSIDE}.divergence:bhattacharyya': {{scale: 2.0}}}}",
        f"token_weights: {{'{OUTSIDE}.token_weight:first_tokens': {{count: 2}}}}",
        f"strategy: {{'{OUTSIDE}.strategy:first_rows': {{count: 2}}}}",
    ],
    ids=["divergence", "token weight", "strategy"],
)
def test_what_a_distill_stage_names_from_outside_trains(tmp_path, option):
    places.write(tmp_path, stages=f"[{{distill: {{steps: 3, learning_rate: 0.01, {option}}}}}]")
    run(tmp_path, "check")
    run(tmp_path)
    here = [step["loss"] for step in places.steps(tmp_path, "distill")]
    places.write(tmp_path, stages="[{distill: {steps: 3, learning_rate: 0.01}}]")
    run(tmp_path)
    usual = [step["loss"] for step in places.steps(tmp_path, "distill")]
    assert len(here) == len(usual) == 3
    assert here != usual


def test_a_student_from_outside_is_made_trained_and_measured(tmp_path):
    places.write(
        tmp_path,
        student=f"{{'{OUTSIDE}.student:top_of': {{layers: 1}}}}",
        stages=f"[{{distill: {{steps: 1}}}}, {MEASURE}]",
    )
    run(tmp_path, "check")
    run(tmp_path)
    config = json.loads((tmp_path / "runs/r/student/config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert places.summary(tmp_path)["after"]["forward_kl"]["value"] is not None


def test_an_engine_from_outside_writes_the_answers(tmp_path):
    generate = f"{{generate: {{engine: {{'{OUTSIDE}.engine:echo': {{times: 2}}}}, max_new_tokens: 8, filters: null}}}}"
    rows = places.prompts()
    places.write(tmp_path, rows, stages=f"[{generate}, {{distill: {{steps: 1}}}}]")
    run(tmp_path)
    lines = (tmp_path / "runs/r/stages/generate/answers.jsonl").read_text().splitlines()
    last_word = {row["id"]: row["prompt"].split()[-1] for row in rows}
    for answer in map(json.loads, lines):
        assert answer["text"].split() == [last_word[answer["row_id"]]] * 2


def test_a_metric_from_outside_reaches_summary_and_page(tmp_path):
    metrics = f"[likelihood, {{'{OUTSIDE}.metric:words': {{least: 50}}}}]"
    measure = f"{{evaluate: {{metrics: {metrics}, samples: 4, max_new_tokens: 4, resamples: 100}}}}"
    places.write(tmp_path, stages=f"[{{distill: {{steps: 1}}}}, {measure}]")
    run(tmp_path)
    assert places.summary(tmp_path)["after"]["words"]["value"] == 50
    assert "Words an answer" in (tmp_path / "runs/r/report.html").read_text()


@pytest.mark.parametrize(
    ("recipe", "path"),
    [
        ({"teacher": "{'builders.outside.teacher:bigram': {tokeniser: t}}"}, "teacher.builders"),
        ({"student": "{'builders.outside.student:top_of': {layers: two}}"}, "student.builders"),
        (
            {"stages": "[{generate: {engine: {'builders.outside.engine:echo': {time: 2}}}}]"},
            "generate.engine",
        ),
        ({"stages": "[{distill: {strategy: 'builders.outside.strategy:forwards'}}]"}, "distill.strategy"),
        ({"stages": "[{distill: {}}, {evaluate: {metrics: ['builders.outside.none:at_all']}}]"}, "metrics"),
    ],
)
def test_names_and_options_from_outside_are_checked_when_the_recipe_is_read(tmp_path, recipe, path):
    places.write(tmp_path, **recipe)
    done = potstill("check", "--quick", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert path in done.stderr
    assert "Traceback" not in done.stderr


def test_an_edit_of_outside_code_trains_anew(tmp_path, monkeypatch):
    """The source is part of the key: the old result does not come back under the new code."""
    import sys

    code = tmp_path / "mine.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    places.write(tmp_path, stages="[{distill: {steps: 1, divergence: 'mine:loss'}}]")
    for factor in (1, 2):
        sys.modules.pop("mine", None)
        code.write_text(
            'SUPPORTS = frozenset({"dense"})\n'
            "def loss(student_lp, teacher_lp):\n"
            f"    return {factor} * (student_lp - teacher_lp).square().sum(-1)\n"
        )
        done = potstill("run", "r.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "distill: unchanged" not in done.stderr
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert "distill: unchanged" in done.stderr
