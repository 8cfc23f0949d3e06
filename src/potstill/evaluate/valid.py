"""The share of answers that are what the recipe's task wants, whatever they say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from potstill.evaluate.subject import Subject
from potstill.types import Figure

VALID = Figure(
    "valid", label="Valid answers", unit="share", better="up",
    meaning="The share of answers that are what the task wants: an object by the schema, one of the labels, a number.",
)  # fmt: skip
FIGURES = ()  # they depend on the task
NEEDS = frozenset({"answers"})
FREE = True  # measured whenever another metric needs the answers too
TASKS = frozenset({"json", "label", "number"})  # types of tasks that it measures
OF_TEXT = True  # a served teacher is measured by what it wrote before training


def measure(subject: Subject) -> tuple[Figure, ...]:
    """One figure; none without a task that some text can miss."""
    if subject.task is None or subject.task.type == "text":
        return ()
    return (subject.ratio(VALID, [not subject.task.problem(answer.text) for answer in subject.answers]),)


def details(subject: Subject) -> Mapping[str, Any]:
    """Why answers are invalid, with their number."""
    if subject.task is None:
        return {}
    problems = (subject.task.problem(answer.text) for answer in subject.answers)
    return {"reasons": dict(Counter(problem.partition(" (")[0] for problem in problems if problem))}
