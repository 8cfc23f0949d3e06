"""Right numbers of a task of type number."""

from __future__ import annotations

from decimal import Decimal

from potstill.evaluate._task import compared, share
from potstill.evaluate.subject import Subject
from potstill.types import Figure

EXACT = Figure(
    "number_exactness", label="Exact numbers", unit="share", better="up",
    meaning="The share of answers that are the right number, within the task's tolerance; as decimal numbers, so that "
    "0.10 is 0.1.",
)  # fmt: skip
FIGURES = ()  # they depend on the task
NEEDS = frozenset({"answers"})
FREE = True
TASKS = frozenset({"number"})  # types of tasks that it measures
OF_TEXT = True  # a served teacher is measured by what it wrote before training


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Exactness against gold and, apart from it, the teacher; none for another type of task."""
    tolerance = Decimal(0) if subject.task is None else Decimal(str(subject.task.tolerance))

    def right(answer: Decimal, reference: Decimal) -> bool:
        return abs(answer - reference) <= tolerance

    return tuple(share(subject, beside, EXACT, right) for beside in compared(subject, "number"))
