"""Measure the teacher and every student on the same held-out rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.data import questions as data_questions
from potstill.data.questions import Question
from potstill.data.reader import Reader
from potstill.data.task import Task
from potstill.devices import ranks
from potstill.errors import RecipeError
from potstill.evaluate import by_prompt, stats
from potstill.evaluate.subject import Answer, Metric, Subject
from potstill.models import loading
from potstill.recipe.specs import MetricChoice
from potstill.signals.teacher import Teacher
from potstill.stages import _measure, _rows
from potstill.stages._artifact import produce
from potstill.stages._context import Context, State
from potstill.stages._metrics import metrics_of
from potstill.stages.evaluate import Evaluate
from potstill.store.artifacts import Artifact, key_of
from potstill.store.disk import write_json
from potstill.store.lines import write_lines
from potstill.types import Example, Figure

VERSION = 10  # raised when a figure changes its meaning, or a file what it holds
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
    against: Teacher | None = (
        None  # whom students are compared with, token by token; the run's own teacher without
    )

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return metrics_of(self.choices, None if self.task is None else self.task.type)

    @property
    def teacher(self) -> Teacher:
        return self.against or self.context.setup.teacher

    @property
    def task(self) -> Task | None:
        return self.context.setup.task

    @cached_property
    def foreign(self) -> str:
        """Why the teacher's distribution cannot be compared; empty if it can."""
        readers = self.context.setup.readers
        if readers.teacher is None and not self.teacher.provides & {"dense"}:
            return "the teacher gives text alone"
        if not readers.same_prompts and any(example.reading is None for example in self.examples):
            return "teacher and student are asked in different words"
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


def asked(written: Evaluate, settled: Evaluate, state: State, context: Context) -> tuple[list[Question], int]:
    """The held-out prompts that models answer in text, and the most tokens of an answer.

    `written` is the stage as the recipe has it, `settled` has no `auto`.
    """
    assert settled.samples != "auto"
    assert settled.max_new_tokens != "auto"
    prompts = _rows.questions(state, context, settled.samples)
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
        "examples": _rows.scored_rows(job.examples),
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
        tables[role], answers[role] = _table(job, measured), student.answers
        details[role], seconds[role] = _details(job, student), student.seconds
        if role == "after":
            prompts = _prompts(job, measured)
        if student.scores is not None and not job.foreign:
            teacher = replace(teacher, scores=student.scores.of_teacher())
    tables["teacher"] = _table(job, _measured_by(job, teacher))
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
            "models": {role: _stored(table) for role, table in tables.items()},
            "retention": _stored(_retention(job, tables["teacher"], tables.get("after", {}))),
            "differences": {role: _stored(table) for role, table in _differences(job, tables).items()},
            "stages": [_stored(table) for table in _by_stage(job, tables)],
            "details": {role: found for role, found in details.items() if found},
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
        # Here and not in a file: times differ between runs that are the same in everything else.
        "writing": {
            role: {"seconds": spent, "answers": len(job.questions)}
            for role, spent in seconds.items()
            if spent
        },
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


def _by_stage(job: Job, tables: Mapping[str, Table]) -> list[Table]:
    """Each training stage against what was before it, on the same prompts, where there is more than one."""
    roles = [role for role in job.students if role != "control"]
    if len(roles) < 3:
        return []
    return [
        {
            key: stats.difference(
                figure, tables[one][key], resamples=job.resamples, seed=job.context.setup.data_seed
            )
            for key, figure in tables[other].items()
            if key in tables[one] and figure.better and figure.place != "cost"
        }
        for one, other in itertools.pairwise(roles)
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
    scored = key_of("scored", {"rows": _rows.scored_rows(job.examples)})
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
