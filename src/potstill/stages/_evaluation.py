"""Measure the teacher and every student on the same held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.data.questions import Question
from potstill.data.reader import Reader
from potstill.devices import ranks
from potstill.errors import RecipeError
from potstill.evaluate import by_prompt, stats
from potstill.evaluate.subject import Answer, Metric, Subject
from potstill.models import loading
from potstill.recipe.specs import MetricChoice
from potstill.signals.teacher import Teacher
from potstill.stages import _measure
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._metrics import metrics_of
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import write_json
from potstill.store.lines import write_lines
from potstill.types import Example, Figure

VERSION = 9  # raised when a figure changes its meaning, or a file what it holds
RESULT = "evaluation.json"
PROMPTS = "prompts.json"
SAMPLES = "samples.jsonl"
Table = dict[str, Figure]


@dataclass(frozen=True)
class Job:
    """What the stage `name` measures. `students` maps a role (before, after, control) to its artifact."""

    name: str
    choices: Sequence[MetricChoice]
    resamples: int
    students: Mapping[str, Artifact]
    examples: Sequence[Example]
    questions: Sequence[Question]
    max_new_tokens: int
    context: Context

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return metrics_of(self.choices)

    @property
    def teacher(self) -> Teacher:
        return self.context.setup.teacher

    @cached_property
    def foreign(self) -> str:
        """Why the teacher's distribution cannot be compared; empty if it can."""
        readers = self.context.setup.readers
        if readers.teacher is None and not self.teacher.provides & {"dense"}:
            return "the teacher gives text alone"
        if not readers.comparable:
            return "teacher and student have different vocabularies"
        if rows := sum(bool(readers.foreign(example.input_ids)) for example in self.examples):
            return (
                f"{rows} of {len(self.examples)} held-out rows hold ids that the teacher's vocabulary lacks"
            )
        return "" if "dense" in self.teacher.provides else "the teacher does not give its whole distribution"

    def model(
        self, role: str, key: str, load: Callable[[], loading.Loaded], reader: Reader
    ) -> _measure.Model:
        """A model to measure in this stage."""
        return _measure.Model(self.name, role, key, load, reader, self.context)

    def needs(self, what: str) -> bool:
        """Whether any metric needs the scores, or the answers."""
        return any(what in metric.needs for metric in self.metrics)


def evaluate(job: Job) -> Artifact:
    """The evaluation's figures, each with n and a 95 % interval by resampling prompts."""
    inputs = {
        "version": VERSION,
        "teacher": job.teacher.fingerprint,
        "students": {role: artifact.key for role, artifact in job.students.items()},
        "examples": [[e.row_id, e.input_ids, e.scored] for e in job.examples],
        "questions": [astuple(question) for question in job.questions],
        "metrics": [job.context.identity(choice) for choice in job.choices],
        "max_new_tokens": job.max_new_tokens,
        "resamples": job.resamples,
        "seed": job.context.setup.data_seed,
    }
    return produce(
        job.context, "evaluate", job.name, inputs, lambda folder: _build(job, folder), together=True
    )


def _build(job: Job, folder: Path) -> Mapping[str, Any]:
    teacher = Subject(
        "teacher",
        job.examples,
        job.questions,
        foreign=job.foreign,
        resamples=job.resamples,
        seed=job.context.setup.data_seed,
    )
    made: list[Artifact] = []
    if hasattr(job.teacher, "loaded"):
        readers = job.context.setup.readers
        model = job.model("teacher", job.teacher.fingerprint, job.teacher.loaded, readers.teacher_reader)
        teacher = _with_answers(job, teacher, model, made)
    tables: dict[str, Table] = {}
    prompts: dict[str, Any] = {}
    answers = {"teacher": teacher.answers}
    for role in job.students:
        student = _measured(job, replace(teacher, role=role, answers=(), seconds=0.0), made)
        measured = _measured_by(job, student)
        tables[role], answers[role] = _table(job, measured), student.answers
        if role == "after":
            prompts = _prompts(job, measured)
        if student.scores is not None and not job.foreign:
            teacher = replace(teacher, scores=student.scores.of_teacher())
    tables["teacher"] = _table(job, _measured_by(job, teacher))
    sizes = {key: value for one in made for key, value in one.facts.items() if key.startswith("teacher_")}
    sizes = sizes or _measure.teacher_sizes(job.teacher)
    job.teacher.close()
    if not ranks.first():
        return {}
    write_json(
        folder / RESULT,
        {
            "metrics": [metric.name for metric in job.metrics],
            "models": {role: _stored(table) for role, table in tables.items()},
            "retention": _stored(_retention(job, tables["teacher"], tables.get("after", {}))),
            "differences": {role: _stored(table) for role, table in _differences(job, tables).items()},
            "scored_tokens": sum(e.count for e in job.examples),
        },
    )
    write_json(folder / PROMPTS, prompts)
    write_lines(folder / SAMPLES, _samples(job, answers))
    return {
        "prompts": len({e.row_id for e in job.examples}),
        "questions": len(job.questions),
        "gold": sum(bool(question.gold) for question in job.questions),
        "written": sum(bool(question.written) for question in job.questions),
        "measurements": [one.key for one in made],
        **sizes,
    }


def _stored(table: Table) -> dict[str, dict[str, Any]]:
    return {key: figure.stored() for key, figure in table.items()}


def _measured(job: Job, subject: Subject, made: list[Artifact]) -> Subject:
    """A student with its scores and answers, as far as metrics need them; in the teacher's number format."""
    setup, artifact = job.context.setup, job.students[subject.role]
    dtype = getattr(job.teacher, "dtype", torch.float32)

    def load() -> loading.Loaded:
        source = loading.find_source(str(artifact.path / "student"))
        return loading.load(source, dtype=dtype, device=setup.device)

    model = job.model(subject.role, artifact.key, load, setup.readers.student)
    if job.needs("scores"):
        compared = None if job.foreign else job.teacher
        measured, measurement = _measure.scores_of(model, compared, job.examples)
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


def _measured_by(job: Job, subject: Subject) -> list[tuple[Metric, Sequence[Figure]]]:
    """Every metric with its figures of one model; without weights here a teacher writes no text."""
    silent = len(subject.answers) < len(subject.questions)
    return [
        (metric, metric.measure(subject))
        for metric in job.metrics
        if not (silent and "answers" in metric.needs)
    ]


def _table(job: Job, measured: Sequence[tuple[Metric, Sequence[Figure]]]) -> Table:
    """The figures of one model by their keys.

    Raises:
        RecipeError: two metrics give a figure of the same key.
    """
    table: Table = {}
    for metric, figures in measured:
        for figure in figures:
            if figure.key in table:
                raise RecipeError(
                    f"the metric {metric.name} gives {figure.key}, which another metric gives too.",
                    fix="Leave one of them out, or give its figure another key.",
                    path=f"{job.name}.metrics",
                )
            table[figure.key] = figure
    return table


def _prompts(job: Job, measured: Sequence[tuple[Metric, Sequence[Figure]]]) -> dict[str, Any]:
    """The trained student's figures prompt by prompt, with what they were measured on."""
    scored = key_of("scored", {"rows": [[e.row_id, e.input_ids, e.scored] for e in job.examples]})
    asked = key_of("asked", {"rows": [[q.row_id, q.prompt, q.gold, q.written] for q in job.questions]})
    entries = {
        figure.key: by_prompt.stored(figure, asked if "answers" in metric.needs else scored)
        for metric, figures in measured
        for figure in figures
    }
    return {key: entry for key, entry in entries.items() if entry is not None}


def _retention(job: Job, teacher: Table, student: Table) -> Table:
    """What share the student kept of each of the teacher's scores that is better when higher."""
    return {
        key: stats.retained(figure, student[key], resamples=job.resamples, seed=job.context.setup.data_seed)
        for key, figure in teacher.items()
        if figure.better == "up" and figure.place in ("headline", "result") and figure.pairs
        if key in student
    }


def _differences(job: Job, tables: Mapping[str, Table]) -> dict[str, Table]:
    """The trained student against each other model, on the same prompts; of figures that have a direction."""
    after = tables.get("after", {})
    return {
        role: {
            key: stats.difference(
                figure, table[key], resamples=job.resamples, seed=job.context.setup.data_seed
            )
            for key, figure in after.items()
            if key in table and figure.better and figure.place != "cost"
        }
        for role, table in tables.items()
        if after and role in ("before", "control", "teacher")
    }


def _samples(job: Job, answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    return [
        {
            "row_id": question.row_id,
            "prompt": question.prompt,
            "messages": [{"role": role, "content": text} for role, text in question.turns],
            "reference": question.reference,
            "gold": question.gold,
            "written": question.written,
            "family": question.family,
            "unseen": question.unseen,
            "answers": {
                role: {"text": written[index].text, "stopped": written[index].stopped}
                for role, written in answers.items()
                if written
            },
        }
        for index, question in enumerate(job.questions)
    ]
