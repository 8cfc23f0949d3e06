"""Measure teacher, untrained and trained student on the same held-out rows."""

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
from potstill.objectives.plugins import Divergence
from potstill.recipe import plugins
from potstill.signals.teacher import Teacher
from potstill.stages._artifact import produce
from potstill.stages._context import Context
from potstill.stages._metrics import metrics_of
from potstill.stages.evaluate import Evaluate
from potstill.store.artifacts import Artifact, write_json
from potstill.store.lines import write_lines
from potstill.types import Example, Figure

VERSION = 3  # raised when a figure changes its meaning
RESULT = "evaluation.json"
SAMPLES = "samples.jsonl"
BATCH_ROWS = 32
Table = dict[str, Figure]


@dataclass(frozen=True)
class Job:
    """What is measured. `students` maps a role (before, after, control) to its artifact."""

    spec: Evaluate
    students: Mapping[str, Artifact]
    examples: Sequence[Example]
    questions: Sequence[Question]
    max_new_tokens: int
    context: Context

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        return metrics_of(self.spec.metrics)

    @property
    def teacher(self) -> Teacher:
        return self.context.setup.teacher

    @property
    def foreign(self) -> str:
        """Why the teacher's distribution cannot be compared; empty if it can."""
        if not self.context.setup.readers.shared_vocabulary:
            return "teacher and student have different vocabularies"
        return "" if "dense" in self.teacher.provides else "the teacher does not give its whole distribution"

    @property
    def dtype(self) -> torch.dtype:
        """The number format in which students are measured: the teacher's, where it has one."""
        return getattr(self.teacher, "dtype", torch.float32)

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
        "metrics": [job.context.identity(choice) for choice in job.spec.metrics],
        "max_new_tokens": job.max_new_tokens,
        "resamples": job.spec.resamples,
        "seed": job.context.seed,
    }
    return produce(job.context, "evaluate", job.spec.name, inputs, lambda folder: _build(job, folder))


def _build(job: Job, folder: Path) -> Mapping[str, Any]:
    subject = Subject(
        "teacher",
        job.examples,
        job.questions,
        foreign=job.foreign,
        resamples=job.spec.resamples,
        seed=job.context.seed,
    )
    teacher, sizes = subject, dict[str, int]()
    if hasattr(job.teacher, "loaded"):
        loaded = job.teacher.loaded()
        sizes = {f"teacher_{name}": value for name, value in anatomy.sizes(loaded.model).items()}
        teacher = _with_answers(job, subject, loaded, job.context.setup.readers.of_teacher)
    tables: dict[str, Table] = {}
    answers = {"teacher": teacher.answers}
    for role, artifact in job.students.items():
        measured = _measure(job, replace(subject, role=role), artifact)
        tables[role], answers[role] = _table(job, measured), measured.answers
        if measured.scores is not None and not job.foreign:
            teacher = replace(teacher, scores=measured.scores.of_teacher())
    tables["teacher"] = _table(job, teacher)
    job.teacher.close()
    write_json(
        folder / RESULT,
        {
            "metrics": [metric.name for metric in job.metrics],
            "models": {role: _stored(table) for role, table in tables.items()},
            "retention": _stored(_retention(tables, job)),
            "scored_tokens": sum(e.count for e in job.examples),
        },
    )
    write_lines(folder / SAMPLES, _samples(job, answers))
    return {"prompts": len({e.row_id for e in job.examples}), "questions": len(job.questions), **sizes}


def _measure(job: Job, subject: Subject, artifact: Artifact) -> Subject:
    """A student with its scores and answers, as far as metrics need them."""
    setup = job.context.setup
    source = loading.find_source(str(artifact.path / "student"))
    student = loading.load(source, dtype=job.dtype, device=setup.device)
    if job.needs("scores"):
        subject = replace(subject, scores=_scores(job, student.model, subject.role))
    return _with_answers(job, subject, student, setup.readers.student)


def _stored(table: Table) -> dict[str, dict[str, Any]]:
    return {key: figure.stored() for key, figure in table.items()}


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
                    path=f"{job.spec.name}.metrics",
                )
            table[figure.key] = figure
    return table


def _scores(job: Job, student: torch.nn.Module, role: str) -> scores.Scores:
    context, reader = job.context, job.context.setup.readers.student
    forward_kl, reverse_kl = (
        Divergence.from_module(plugins.load("divergences", name)) for name in ("forward_kl", "reverse_kl")
    )
    with context.console.bar(f"{job.spec.name}: likelihood, {role}", len(job.examples)) as bar:

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
    written: dict[int, Answer] = {}
    started = time.monotonic()
    with context.console.bar(f"{job.spec.name}: answers, {subject.role}", len(job.questions)) as bar:
        for completion in local.generate(
            loaded.model,
            [q.teacher_prompt_ids if as_teacher else q.prompt_ids for q in job.questions],
            Sampling(max_new_tokens=job.max_new_tokens, temperature=0.0),
            stop_ids=reader.stop_ids,
            pad_id=reader.pad_id,
            seed=context.seed,
            batch_rows=BATCH_ROWS,
            vocabulary=reader.vocabulary.size,
            on_progress=lambda progress: bar.update(progress.done),
            should_stop=lambda: bool(context.stop_signal()),
        ):
            text = loaded.tokenizer.decode(
                list(completion.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            row = job.questions[completion.index].row_id
            written[completion.index] = Answer(row, text, len(completion.ids), completion.finish == "stop")
    context.stop_if_signalled()
    answers = [written[index] for index in range(len(job.questions))]
    return replace(subject, answers=answers, seconds=time.monotonic() - started)


def _retention(tables: Mapping[str, Table], job: Job) -> Table:
    """For each higher-is-better score that the teacher has too: what share of it the student kept."""
    teacher, student = tables["teacher"], tables.get("after", {})
    return {
        key: stats.retained(figure, student[key], resamples=job.spec.resamples, seed=job.context.seed)
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
