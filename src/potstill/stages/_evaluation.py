"""Measure the teacher and every student on the same held-out rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.data.questions import Question
from potstill.data.reader import Reader
from potstill.errors import RecipeError
from potstill.evaluate import scores, stats
from potstill.evaluate.subject import Answer, Metric, Subject
from potstill.generate import local
from potstill.generate.sampling import Sampling
from potstill.models import anatomy, loading
from potstill.objectives.token import Divergence
from potstill.recipe import plugins
from potstill.recipe.specs import MetricChoice
from potstill.signals.teacher import Teacher
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._metrics import metrics_of
from potstill.store.artifacts import Artifact, write_json
from potstill.store.lines import write_lines
from potstill.types import Example, Figure

VERSION = 4  # raised when a figure changes its meaning
RESULT = "evaluation.json"
SAMPLES = "samples.jsonl"
BATCH_ROWS = 32
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

    @property
    def foreign(self) -> str:
        """Why the teacher's distribution cannot be compared; empty if it can."""
        if not self.context.setup.readers.shared_vocabulary:
            return "teacher and student have different vocabularies"
        return "" if "dense" in self.teacher.provides else "the teacher does not give its whole distribution"

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
    return produce(job.context, "evaluate", job.name, inputs, lambda folder: _build(job, folder))


def _build(job: Job, folder: Path) -> Mapping[str, Any]:
    teacher = Subject(
        "teacher",
        job.examples,
        job.questions,
        foreign=job.foreign,
        resamples=job.resamples,
        seed=job.context.setup.data_seed,
    )
    students = [replace(teacher, role=role) for role in job.students]
    sizes = dict[str, int]()
    if hasattr(job.teacher, "loaded"):
        loaded = job.teacher.loaded()
        sizes = {f"teacher_{name}": value for name, value in anatomy.sizes(loaded.model).items()}
        teacher = _with_answers(job, teacher, loaded, job.context.setup.readers.teacher_reader)
    tables: dict[str, Table] = {}
    answers = {"teacher": teacher.answers}
    for student in students:
        student = _measured(job, student)
        tables[student.role], answers[student.role] = _table(job, student), student.answers
        if student.scores is not None and not job.foreign:
            teacher = replace(teacher, scores=student.scores.of_teacher())
    tables["teacher"] = _table(job, teacher)
    job.teacher.close()
    write_json(
        folder / RESULT,
        {
            "metrics": [metric.name for metric in job.metrics],
            "models": {role: _stored(table) for role, table in tables.items()},
            "retention": _stored(_retention(job, tables["teacher"], tables.get("after", {}))),
            "scored_tokens": sum(e.count for e in job.examples),
        },
    )
    write_lines(folder / SAMPLES, _samples(job, answers))
    return {"prompts": len({e.row_id for e in job.examples}), "questions": len(job.questions), **sizes}


def _stored(table: Table) -> dict[str, dict[str, Any]]:
    return {key: figure.stored() for key, figure in table.items()}


def _measured(job: Job, subject: Subject) -> Subject:
    """A student with its scores and answers, as far as metrics need them; in the teacher's number format."""
    setup = job.context.setup
    source = loading.find_source(str(job.students[subject.role].path / "student"))
    dtype = getattr(job.teacher, "dtype", torch.float32)
    student = loading.load(source, dtype=dtype, device=setup.device)
    if job.needs("scores"):
        subject = replace(subject, scores=_scores(job, student.model, subject.role))
    return _with_answers(job, subject, student, setup.readers.student)


def _scores(job: Job, student: torch.nn.Module, role: str) -> scores.Scores:
    context, reader = job.context, job.context.setup.readers.student
    forward_kl, reverse_kl = (
        Divergence.from_module(plugins.load("divergences", name)) for name in ("forward_kl", "reverse_kl")
    )
    with context.console.bar(f"{job.name}: likelihood, {role}", len(job.examples)) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done)
            context.stop_if_signalled()

        return scores.score(
            student,
            None if job.foreign else job.teacher,
            job.examples,
            vocabulary=reader.vocabulary.size,
            pad_id=reader.pad_id,
            forward_kl=forward_kl,
            reverse_kl=reverse_kl,
            on_progress=progress,
        )


def _with_answers(job: Job, subject: Subject, loaded: loading.Loaded, reader: Reader) -> Subject:
    """The subject with its greedy answers in the questions' order, where a metric needs them."""
    if not job.questions or not job.needs("answers"):
        return subject
    context, as_teacher = job.context, subject.role == "teacher"
    answers: dict[int, Answer] = {}
    started = time.monotonic()
    with context.console.bar(f"{job.name}: answers, {subject.role}", len(job.questions)) as bar:
        for completion in local.generate(
            loaded.model,
            [q.teacher_prompt_ids if as_teacher else q.prompt_ids for q in job.questions],
            Sampling(max_new_tokens=job.max_new_tokens, temperature=0.0),
            stop_ids=reader.stop_ids,
            pad_id=reader.pad_id,
            seed=context.setup.data_seed,
            batch_rows=BATCH_ROWS,
            vocabulary=reader.vocabulary.size,
            on_progress=lambda progress: bar.update(progress.done),
            should_stop=lambda: bool(context.stop_signal()),
        ):
            text = reader.decode(completion.ids)
            answers[completion.index] = Answer(text, len(completion.ids), completion.finish == "stop")
    context.stop_if_signalled()
    in_order = [answers[index] for index in range(len(job.questions))]
    return replace(subject, answers=in_order, seconds=time.monotonic() - started)


def _table(job: Job, subject: Subject) -> Table:
    """Every metric's figures of one model.

    Raises:
        RecipeError: two metrics give a figure of the same key.
    """
    table: Table = {}
    for metric in job.metrics:
        if "answers" in metric.needs and len(subject.answers) < len(subject.questions):
            continue  # a teacher without weights here writes no text
        for figure in metric.measure(subject):
            if figure.key in table:
                raise RecipeError(
                    f"the metric {metric.name} gives {figure.key}, which another metric gives too.",
                    fix="Leave one of them out, or give its figure another key.",
                    path=f"{job.name}.metrics",
                )
            table[figure.key] = figure
    return table


def _retention(job: Job, teacher: Table, student: Table) -> Table:
    """What share the student kept of each of the teacher's scores that is better when higher."""
    return {
        key: stats.retained(figure, student[key], resamples=job.resamples, seed=job.context.setup.data_seed)
        for key, figure in teacher.items()
        if figure.better == "up" and figure.place in ("headline", "result") and figure.pairs
        if key in student
    }


def _samples(job: Job, answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    return [
        {
            "row_id": question.row_id,
            "prompt": question.prompt,
            "reference": question.reference,
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
