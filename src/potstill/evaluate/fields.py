"""Right fields of a task of type json: the share of exact ones, and macro F1 over field names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from potstill.evaluate._task import Compared, compared
from potstill.evaluate.labels import macro_f1
from potstill.evaluate.subject import Subject
from potstill.types import Figure

EXACT = Figure(
    "field_exactness", label="Exact fields", unit="share", better="up",
    meaning="The share of the reference's fields that stand in the answer with the very same value; items of a list "
    "in any order, and an invalid answer has none.",
)  # fmt: skip
MACRO_F1 = Figure(
    "field_macro_f1", label="Field macro F1", better="up",
    meaning="The mean over field names of F1, 2 TP / (2 TP + FP + FN): fields that are missing, wrong or made up count, "
    "names that no reference has as one.",
)  # fmt: skip
FIGURES = ()  # they depend on the task
NEEDS = frozenset({"answers"})
FREE = True
TASKS = frozenset({"json"})  # types of tasks that it measures
OF_TEXT = True  # a served teacher is measured by what it wrote before training
Fields = Counter[tuple[str, str]]


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Exactness and macro F1 against gold and, apart from it, the teacher; none for another type of task."""
    figures = []
    for beside in compared(subject, "json"):
        assert subject.task is not None
        answers, references = (
            [None if value is None else fields(value, subject.task.rationale) for value in values]
            for values in (beside.answers, beside.references)
        )
        figures.append(_exact(subject, beside, answers, references))
        names = sorted({name for reference in references for name, _ in reference or ()})
        counts = [
            _counts(names, answer or Counter(), reference)
            for answer, reference in zip(answers, references, strict=True)
        ]
        figures.append(subject.statistic(beside.named(MACRO_F1), counts, macro_f1))
    return tuple(figures)


def _exact(
    subject: Subject,
    beside: Compared,
    answers: Sequence[Fields | None],
    references: Sequence[Fields | None],
) -> Figure:
    def right(given: Sequence[Fields | None]) -> list[float]:
        pairs = zip(given, references, strict=True)
        return [float((a & r).total()) if a is not None and r is not None else 0.0 for a, r in pairs]

    sizes = [0.0 if reference is None else float(reference.total()) for reference in references]
    figure = subject.ratio(beside.named(EXACT), right(answers), sizes)
    known = [index for index, reference in enumerate(references) if reference is not None]
    if len(known) < 2:
        return figure
    other = dict(zip(known, known[1:] + known[:1], strict=True))
    return figure.above(
        {"another prompt's reference": right([references[other.get(i, i)] for i in range(len(references))])}
    )


def fields(value: Any, rationale: str | None = None) -> Fields:
    """The leaves of an object by name and value, each as often as it stands; `{"a": {"b": [1, 2]}}` has a.b twice."""
    return Counter(_leaves({k: v for k, v in value.items() if k != rationale}, ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value:
        for item in value:
            yield from _leaves(item, name)
    else:
        # 1 and 1.0 are one number, 1 and true are two values.
        plain = int(value) if isinstance(value, float) and value.is_integer() else value
        yield name, json.dumps(plain, sort_keys=True)


def _counts(names: Sequence[str], answer: Fields, reference: Fields | None) -> list[float]:
    """TP, FP and FN of each field name for one prompt, of all other names together last; zeros without a reference."""
    if reference is None:
        return [0.0] * (3 * len(names) + 3)
    known = set(names)
    groups = [Counter[str](), Counter[str](), Counter[str]()]
    for group, leaves in zip(
        groups, (answer & reference, answer - reference, reference - answer), strict=True
    ):
        for (name, _), count in leaves.items():
            group[name if name in known else ""] += count
    return [float(group[name]) for name in (*names, "") for group in groups]
