"""What an evaluation measures, and of whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from potstill.data.questions import Question
from potstill.data.reader import Reader, Readers
from potstill.data.task import Task
from potstill.evaluate.subject import Metric
from potstill.models import loading
from potstill.recipe.specs import MetricChoice
from potstill.signals.teacher import Teacher
from potstill.stages import _measure
from potstill.stages._context import Context
from potstill.stages._metrics import metrics_of
from potstill.store.artifacts import Artifact
from potstill.teachers.cached import reading_of
from potstill.types import Example, Figure

Table = dict[str, Figure]
NOT_WHOLE = "the teacher does not give its whole distribution"


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
        return not_comparable(self.teacher, self.context.setup.readers, self.examples)

    @cached_property
    def compared(self) -> Teacher | None:
        """Whom students are compared with, token by token: also one teacher that states the likeliest ids alone, where
        it states them of every row."""
        if not self.foreign:
            return self.teacher
        teacher: Any = self.teacher
        if self.foreign != NOT_WHOLE or "topk" not in teacher.provides:
            return None
        if hasattr(teacher, "members"):
            return (
                None  # what each says of ids that only another one states is an estimate, and bounds nothing
            )
        caches = getattr(teacher, "caches", lambda example: ())
        held = (cache.holds(reading_of(example)) for example in self.examples for cache in caches(example))
        return teacher if all(held) else None

    def model(
        self, role: str, key: str, load: Callable[[], loading.Loaded], reader: Reader
    ) -> _measure.Model:
        """A model to measure in this stage."""
        return _measure.Model(self.name, role, key, load, reader, self.context)

    def needs(self, what: str) -> bool:
        """Whether any metric needs the scores, or the answers."""
        return any(what in metric.needs for metric in self.metrics)


def not_comparable(teacher: Teacher, readers: Readers, examples: Sequence[Example]) -> str:
    """Why models cannot be compared with the teacher's distribution on these rows; empty if they can."""
    if readers.teacher is None and not teacher.provides & {"dense"}:
        return "the teacher gives text alone"
    if not readers.same_prompts and any(example.reading is None for example in examples):
        return "teacher and student are asked in different words"
    if not readers.comparable:
        return "teacher and student have different vocabularies"
    if rows := sum(bool(readers.foreign(example.input_ids)) for example in examples):
        return f"{rows} of {len(examples)} held-out rows hold ids that the teacher's vocabulary lacks"
    return "" if "dense" in teacher.provides else NOT_WHOLE
