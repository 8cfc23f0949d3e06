"""What the metrics of tasks share: answers and references as the task reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from potstill.data.task import NotValid, Task
from potstill.evaluate.subject import Subject
from potstill.types import Figure


@dataclass(frozen=True)
class Compared:
    """Answers beside references of one kind, prompt by prompt; None where a text is no valid answer.

    A prompt without a reference counts for nothing, one with an invalid answer counts as wrong.
    """

    kind: str  # gold or teacher
    answers: Sequence[Any]
    references: Sequence[Any]

    @property
    def known(self) -> list[float]:
        """1 for every prompt that has a reference."""
        return [float(reference is not None) for reference in self.references]

    def named(self, figure: Figure) -> Figure:
        """The figure under the name of its references."""
        label = f"{figure.label} vs {self.kind}"
        whose = {"gold": "the right answers of the data", "teacher": "the answers that the teacher wrote"}
        meaning = f"{figure.meaning} References are {whose[self.kind]}."
        return replace(figure, key=f"{figure.key}_{self.kind}", label=label, meaning=meaning)


def compared(subject: Subject, type: str) -> Iterator[Compared]:
    """The subject's answers against gold and, apart from these, the teacher's, where the task is of this type.

    A teacher that is measured by what it wrote is not compared with itself.
    """
    task = subject.task
    if task is None or task.type != type:
        return
    answers = [valid(task, answer.text) for answer in subject.answers]
    for kind, name in (("gold", "gold"), ("teacher", "written")):
        references = [valid(task, getattr(question, name)) for question in subject.questions]
        if not (kind == "teacher" and subject.wrote_before) and any(
            reference is not None for reference in references
        ):
            yield Compared(kind, answers, references)


def valid(task: Task, text: str) -> Any:
    """The answer that a text holds, None where it is no valid one."""
    with suppress(NotValid):
        return task.read(text)
    return None


def commonest(values: Sequence[Any]) -> Any:
    """The value that stands most often; None where there is none."""
    known = [value for value in values if value is not None]
    return max(known, key=known.count, default=None)


def share(subject: Subject, beside: Compared, figure: Figure, right: Callable[[Any, Any], bool]) -> Figure:
    """The share of right answers, above the floor of an answer that is always the commonest reference."""
    references, known = beside.references, beside.known

    def count(answers: Sequence[Any]) -> list[float]:
        pairs = zip(answers, references, strict=True)
        return [float(a is not None and r is not None and right(a, r)) for a, r in pairs]

    measured = subject.ratio(beside.named(figure), count(beside.answers), known)
    return measured.above({"the commonest answer": count([commonest(references)] * len(references))})
