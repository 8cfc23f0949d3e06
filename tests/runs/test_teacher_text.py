"""The student is trained and evaluated on the tokens that the teacher read and wrote."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from builders import places
from builders.cli import potstill
from potstill.generate import local
from potstill.stages import _evaluation, _train


@pytest.fixture
def trained_on(monkeypatch):
    """The examples of every training stage of a run, by stage."""
    seen = {}
    train = _train.train_student

    def spy(spec, state, rows, context, teacher=None):
        seen[spec.name] = rows.train
        return train(spec, state, rows, context, teacher)

    monkeypatch.setattr(_train, "train_student", spy)
    return seen


@pytest.fixture
def asked(monkeypatch):
    """The prompts of every call that makes a model write."""
    calls = []
    generate = local.generate

    def spy(model, prompts, sampling, **settings):
        calls.append([tuple(prompt) for prompt in prompts])
        return generate(model, prompts, sampling, **settings)

    monkeypatch.setattr(local, "generate", spy)
    return calls


def test_the_teacher_writes_nothing_without_a_generate_stage(tmp_path, asked, trained_on):
    """Rows with answers, no generate stage: the teacher writes nothing, and the data's own answers are learnt."""
    rows = places.answered()
    places.write(tmp_path, rows, stages="[{distill: {steps: 2}}, {evaluate: {metrics: [likelihood]}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert asked == []
    answers = {row["id"]: [int(word[1:]) for word in row["response"].split()] for row in rows}
    for example in trained_on["distill"]:
        assert list(example.input_ids[-3:]) == [*answers[example.id], 2]


def test_the_student_learns_the_text_that_the_teacher_wrote(tmp_path, asked, trained_on):
    """With a generate stage every prompt is asked once, and the student learns from those ids and no others."""
    places.write(tmp_path, stages="[{generate: {filters: null, max_new_tokens: 6}}, {distill: {steps: 2}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    assert len(asked) == 1
    assert set(Counter(asked[0]).values()) == {1}
    lines = (tmp_path / "runs/r/stages/generate/answers.jsonl").read_text().splitlines()
    written = {line["row_id"]: line["ids"] for line in map(json.loads, lines)}
    assert len(trained_on["distill"]) >= 8
    for example in trained_on["distill"]:
        scored = [i for i, s in zip(example.input_ids, example.scored, strict=True) if s]
        assert scored[: len(written[example.id])] == written[example.id]
        assert example.origin == "teacher"


def test_a_prompt_that_does_not_fit_is_left_out_for_both_models(tmp_path, asked, trained_on):
    """Fifty words where twenty tokens fit: the row is left out and counted, never cut on one side."""
    rows = places.prompts() + [
        {"id": f"long{i}", "prompt": " ".join(f"w{12 + (i + j) % 99}" for j in range(50))} for i in range(12)
    ]
    places.write(
        tmp_path,
        rows,
        data="{train: rows.jsonl, max_length: 20, on_bad_row: skip}",
        stages="[{generate: {filters: null, max_new_tokens: 6}}, {distill: {steps: 2}}]",
    )
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    read = set(asked[0])
    assert max(map(len, read)) + 6 <= 20
    assert len(read) == 24
    for example in trained_on["distill"]:
        assert not example.id.startswith("long")
        assert example.input_ids[: example.scored.index(True)] in read


def test_a_run_is_refused_where_no_prompt_fits(tmp_path):
    """When every prompt is too long the run stops before the teacher is loaded, and says which limit it was."""
    rows = [{"id": f"p{i}", "prompt": " ".join([f"w{12 + i}"] * 50)} for i in range(24)]
    places.write(
        tmp_path,
        rows,
        data="{train: rows.jsonl, max_length: 20}",
        stages="[{generate: {filters: null, max_new_tokens: 6}}, {distill: {steps: 2}}]",
    )
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "none of the 24 prompts can be asked: 24 prompt too long. max_length 20 leaves 14 tokens"
        in done.stderr
    )


@pytest.mark.parametrize("writes", [True, False])
def test_a_held_out_prompt_has_the_tokens_of_a_training_prompt(tmp_path, monkeypatch, writes):
    """Evaluation asks with the very tokens that stand before a scored answer, for all models alike."""
    jobs = []
    evaluate = _evaluation.evaluate

    def spy(job):
        jobs.append(job)
        return evaluate(job)

    monkeypatch.setattr(_evaluation, "evaluate", spy)
    generate = "{generate: {filters: null, max_new_tokens: 6}}, " if writes else ""
    places.write(tmp_path, stages=f"[{generate}{{distill: {{steps: 1}}}}, {{evaluate: {{samples: 4}}}}]")
    assert potstill("run", "r.yaml", cwd=tmp_path).returncode == 0
    (job,) = jobs
    templater = places.read(tmp_path).readers.student.templater
    rows = {row["id"]: row["prompt"] for row in places.answered()}
    assert len(job.questions) == 4
    for question in job.questions:
        training = templater.prompt_ids(({"role": "user", "content": rows[question.row_id]},))
        assert list(question.prompt_ids) == training


def test_a_template_variable_reaches_both_models(tmp_path, asked, trained_on):
    """A variable of the chat template reaches the teacher's prompt and the student's rows, or neither."""
    for flag in ("true", "false"):
        place = tmp_path / flag
        place.mkdir()
        places.write(place, places.prompts())
        file = place / "teacher" / "chat_template.jinja"
        file.write_text("{% if think %}w99 {% endif %}" + file.read_text())
        places.write(
            place,
            places.prompts(),
            data=f"{{train: rows.jsonl, template: {{kwargs: {{think: {flag}}}}}}}",
            stages="[{generate: {filters: null, max_new_tokens: 4}}, {distill: {steps: 1}}]",
        )
        assert potstill("run", "r.yaml", cwd=place).returncode == 0
        heads = {prompt[0] for prompt in asked[-1]} | {e.input_ids[0] for e in trained_on["distill"]}
        assert heads == ({99} if flag == "true" else {1})
