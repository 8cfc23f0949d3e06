"""Measure the teacher and every student on the same held-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch

from potstill.data import questions as data_questions
from potstill.data.questions import Question
from potstill.devices import ranks
from potstill.evaluate.subject import Answer, Metric, Subject
from potstill.models import loading
from potstill.stages import _measure, _questions
from potstill.stages._artifact import produce
from potstill.stages._context import Context, State
from potstill.stages._evaluated import Job, Table
from potstill.stages._evaluation_tables import (
    by_stage,
    differences,
    prompts_of,
    retention,
    samples_of,
    stored,
    table_of,
)
from potstill.stages._training_rows import scored_rows
from potstill.stages.evaluate import Evaluate
from potstill.store.artifacts import Artifact
from potstill.store.disk import write_json
from potstill.store.lines import write_lines
from potstill.types import Figure

VERSION = 11  # raised when a figure changes its meaning, or a file what it holds
RESULT = "evaluation.json"
PROMPTS = "prompts.json"
SAMPLES = "samples.jsonl"


def asked(written: Evaluate, settled: Evaluate, state: State, context: Context) -> tuple[list[Question], int]:
    """The held-out prompts that models answer in text, and the most tokens of an answer.

    `written` is the stage as the recipe has it, `settled` has no `auto`.
    """
    assert settled.samples != "auto"
    assert settled.max_new_tokens != "auto"
    prompts = _questions.questions(state, context, settled.samples)
    new_tokens, room = settled.max_new_tokens, context.setup.context_length
    if written.max_new_tokens == "auto":
        new_tokens = data_questions.longest_answer(prompts, new_tokens, context=room)
    return data_questions.with_room(prompts, new_tokens, context=room), new_tokens


def evaluate(job: Job) -> Artifact:
    """The evaluation's figures, each with n and a 95 % interval by resampling prompts."""
    inputs = {
        "version": VERSION,
        "teacher": job.teacher.fingerprint,
        "students": {role: artifact.key for role, artifact in job.students.items()},
        "examples": scored_rows(job.examples),
        "questions": [astuple(question) for question in job.questions],
        "metrics": [job.context.identity(choice) for choice in job.choices],
        "max_new_tokens": job.max_new_tokens,
        "resamples": job.resamples,
        "seed": job.context.setup.data_seed,
    }
    if job.task is not None:
        inputs["task"] = job.task.identity
    return produce(
        job.context, "evaluate", job.name, inputs, lambda folder: _build(job, folder), together=True
    )


def _build(job: Job, folder: Path) -> Mapping[str, Any]:
    teacher = Subject(
        "teacher",
        job.examples,
        job.questions,
        task=job.task,
        foreign=job.foreign,
        resamples=job.resamples,
        seed=job.context.setup.data_seed,
    )
    made: list[Artifact] = []
    details, seconds = dict[str, Any](), dict[str, float]()
    writer: Any = job.context.setup.teacher
    if hasattr(writer, "loaded"):
        readers = job.context.setup.readers
        model = job.model("teacher", writer.fingerprint, writer.loaded, readers.teacher_reader)
        teacher = _with_answers(job, teacher, model, made)
    elif hasattr(writer, "greedy") and writer.facts["answered"] and job.questions and job.needs("answers"):
        teacher = _as_written(job, teacher, writer)
    tables: dict[str, Table] = {}
    prompts: dict[str, Any] = {}
    answers = {"teacher": teacher.answers}
    for role in job.students:
        student = _measured(job, replace(teacher, role=role, answers=(), seconds=0.0), made)
        measured = _measured_by(job, student)
        tables[role], answers[role] = table_of(job, measured), student.answers
        details[role], seconds[role] = _details(job, student), student.seconds
        if role == "after":
            prompts = prompts_of(job, measured)
        if student.scores is not None and not job.foreign:
            teacher = replace(teacher, scores=student.scores.of_teacher())
    tables["teacher"] = table_of(job, _measured_by(job, teacher))
    details["teacher"], seconds["teacher"] = _details(job, teacher), teacher.seconds
    sizes = {key: value for one in made for key, value in one.facts.items() if key.startswith("teacher_")}
    sizes = sizes or _measure.teacher_sizes(job.teacher)
    job.teacher.close()
    writer.close()
    if not ranks.first():
        return {}
    write_json(
        folder / RESULT,
        {
            "metrics": [metric.name for metric in job.metrics],
            "models": {role: stored(table) for role, table in tables.items()},
            "retention": stored(retention(job, tables["teacher"], tables.get("after", {}))),
            "differences": {role: stored(table) for role, table in differences(job, tables).items()},
            "stages": [stored(table) for table in by_stage(job, tables)],
            "details": {role: found for role, found in details.items() if found},
            "scored_tokens": sum(e.count for e in job.examples),
        },
    )
    write_json(folder / PROMPTS, prompts)
    write_lines(folder / SAMPLES, samples_of(job, answers))
    return {
        "prompts": len({e.row_id for e in job.examples}),
        "questions": len(job.questions),
        "gold": sum(bool(question.gold) for question in job.questions),
        "written": sum(bool(question.written) for question in job.questions),
        "measurements": [one.key for one in made],
        # Here and not in a file: times differ between runs that are the same in everything else.
        "writing": {
            role: {"seconds": spent, "answers": len(job.questions)}
            for role, spent in seconds.items()
            if spent
        },
        **sizes,
    }


def _measured(job: Job, subject: Subject, made: list[Artifact]) -> Subject:
    """A student with its scores and answers, as far as metrics need them; in the teacher's number format."""
    setup, artifact = job.context.setup, job.students[subject.role]
    dtype = getattr(job.teacher, "dtype", torch.float32)

    def load() -> loading.Loaded:
        source = loading.find_source(str(artifact.path / "student"))
        return loading.load(source, dtype=dtype, device=setup.device)

    model = job.model(subject.role, artifact.key, load, setup.readers.student)
    if job.needs("scores"):
        measured, measurement = _measure.scores_of(model, job.compared, job.examples)
        subject = replace(subject, scores=measured)
        made.append(measurement)
    return _with_answers(job, subject, model, made)


def _with_answers(job: Job, subject: Subject, model: _measure.Model, made: list[Artifact]) -> Subject:
    """The subject with its greedy answers in the questions' order, where a metric needs them."""
    if not job.questions or not job.needs("answers"):
        return subject
    answers, measurement = _measure.answers_of(model, job.questions, job.max_new_tokens)
    made.append(measurement)
    return replace(subject, answers=answers, seconds=measurement.facts["writing_seconds"])


def _as_written(job: Job, subject: Subject, writer: Any) -> Subject:
    """The subject with the greedy answers that a teacher wrote before it left."""
    lines = writer.greedy([q.teacher_prompt_ids for q in job.questions], job.max_new_tokens)
    answers = tuple(Answer(line["text"], line["tokens"], line["stopped"]) for line in lines)
    share = len(answers) / max(1, writer.facts["answered"])
    return replace(subject, answers=answers, seconds=share * writer.facts["writing_seconds"])


def _measured_by(job: Job, subject: Subject) -> list[tuple[Metric, Sequence[Figure]]]:
    """Every metric with its figures of one model."""
    return [(metric, metric.measure(of)) for metric, of in _measurable(job, subject)]


def _measurable(job: Job, subject: Subject) -> Iterator[tuple[Metric, Subject]]:
    """Every metric that can measure the model, and what it is given. Without weights here a teacher writes no text,
    but metrics of text alone measure what it wrote before training."""
    silent = len(subject.answers) < len(subject.questions)
    before = subject
    if silent and any(question.written for question in subject.questions):
        wrote = tuple(Answer(question.written, question.tokens, True) for question in subject.questions)
        before = replace(subject, answers=wrote, wrote_before=True)
    for metric in job.metrics:
        if not silent or "answers" not in metric.needs:
            yield metric, subject
        elif metric.of_text and before.wrote_before:
            yield metric, before


def _details(job: Job, subject: Subject) -> dict[str, Any]:
    """What metrics say of a model beside their figures, by metric."""
    found = {
        metric.name: metric.details(of)
        for metric, of in _measurable(job, subject)
        if metric.details is not None
    }
    return {name: said for name, said in found.items() if said}
