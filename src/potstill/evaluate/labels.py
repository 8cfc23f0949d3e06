"""Right labels of a task of type label: accuracy, macro F1, and which label was taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from potstill.evaluate._task import Compared, compared, share
from potstill.evaluate.subject import Subject
from potstill.types import Figure

ACCURACY = Figure(
    "label_accuracy", label="Label accuracy", unit="share", better="up",
    meaning="The share of right labels; an answer that is none of the labels is wrong.",
)  # fmt: skip
MACRO_F1 = Figure(
    "label_macro_f1", label="Label macro F1", better="up",
    meaning="The mean over labels of F1, 2 TP / (2 TP + FP + FN); labels that neither stand among the references "
    "nor were given are left out.",
)  # fmt: skip
FIGURES = ()  # they depend on the task
NEEDS = frozenset({"answers"})
FREE = True
TASKS = frozenset({"label"})  # types of tasks that it measures
OF_TEXT = True  # a served teacher is measured by what it wrote before training
INVALID = "(invalid)"


def measure(subject: Subject) -> tuple[Figure, ...]:
    """Accuracy and macro F1 against gold and, apart from it, the teacher; none for another type of task."""
    figures = []
    for beside in compared(subject, "label"):
        assert subject.task is not None
        figures.append(share(subject, beside, ACCURACY, lambda answer, reference: answer == reference))
        counts = [
            one_hot_counts(subject.task.labels, answer, reference)
            for answer, reference in zip(beside.answers, beside.references, strict=True)
        ]
        figures.append(subject.statistic(beside.named(MACRO_F1), counts, macro_f1))
    return tuple(figures)


def details(subject: Subject) -> Mapping[str, Any]:
    """How often each reference (rows) was answered by each label (columns)."""
    return {beside.kind: confusion(subject, beside) for beside in compared(subject, "label")}


def confusion(subject: Subject, beside: Compared) -> dict[str, Any]:
    """Counts by reference and answer; the last column counts invalid answers."""
    assert subject.task is not None
    labels, pairs = subject.task.labels, list(zip(beside.references, beside.answers, strict=True))
    columns = [*labels, None]
    counts = [[pairs.count((reference, answer)) for answer in columns] for reference in labels]
    return {"references": list(labels), "answers": [*labels, INVALID], "counts": counts}


def one_hot_counts(labels: Sequence[str], answer: str | None, reference: str | None) -> list[float]:
    """TP, FP and FN of each label for one prompt, label by label; zeros without a reference."""
    known = reference is not None
    return [
        float(value)
        for label in labels
        for value in (
            known and answer == label == reference,
            known and answer == label != reference,
            known and reference == label != answer,
        )
    ]


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 over classes of TP, FP and FN [draws, 3 classes], of those that occur; 0 where none does."""
    tp, fp, fn = (sums[:, i::3] for i in range(3))
    occurs = (tp + fp + fn) > 0
    f1 = 2 * tp / np.where(occurs, 2 * tp + fp + fn, 1.0)
    return np.asarray(f1.sum(1) / np.maximum(occurs.sum(1), 1))
