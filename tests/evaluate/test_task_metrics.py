"""What the metrics of tasks say, against gold and against the teacher apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from potstill.data.questions import Question
from potstill.data.task import Task
from potstill.evaluate import fields, labels, numbers, stats, valid
from potstill.evaluate.subject import Answer, Subject
from potstill.types import Figure

LABEL = Task("label", labels=("a", "b", "c"))


def subject(task: Task, rows: Sequence[tuple[str, str, str]], **changes: object) -> Subject:
    """From (answer, gold, what the teacher wrote) of each prompt."""
    asked = [
        Question(f"r{i}", (1,), (1,), "?", gold, 1, written) for i, (_, gold, written) in enumerate(rows)
    ]
    answers = [Answer(text, 1, True) for text, _, _ in rows]
    return replace(Subject("after", questions=asked, answers=answers, task=task, resamples=200), **changes)


def by_key(figures: Sequence[Figure]) -> dict[str, Figure]:
    return {figure.key: figure for figure in figures}


ROWS = [("a", "a", "a"), ("a.", "b", "a"), ("B", "b", "b"), ("none", "c", "c"), ("c", "", "c")]


def test_labels_are_compared_with_gold_and_the_teacher_apart() -> None:
    figures = by_key(labels.measure(subject(LABEL, ROWS)))
    assert list(figures) == [
        "label_accuracy_gold", "label_macro_f1_gold", "label_accuracy_teacher", "label_macro_f1_teacher",
    ]  # fmt: skip
    gold = figures["label_accuracy_gold"]
    assert (gold.value, gold.n) == (0.5, 4)  # a prompt without a right answer counts for nothing
    assert figures["label_accuracy_teacher"].value == 0.8
    assert gold.floor == 0.5  # always b
    # a: TP 1, FP 1; b: TP 1, FN 1; c: FN 1
    assert figures["label_macro_f1_gold"].value == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_confusions_count_every_reference_and_every_invalid_answer() -> None:
    found = labels.details(subject(LABEL, ROWS))["gold"]
    assert found["answers"] == ["a", "b", "c", "(invalid)"]
    assert found["counts"] == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]


def test_validity_needs_no_reference_and_counts_reasons() -> None:
    rows = [("a", "", ""), ("x", "", ""), ("", "", "")]
    (figure,) = valid.measure(subject(LABEL, rows))
    assert figure.value == pytest.approx(1 / 3)
    assert valid.details(subject(LABEL, rows)) == {"reasons": {"none of the labels": 1, "empty answer": 1}}


def test_fields_are_right_by_name_and_value_whatever_the_order_of_a_list() -> None:
    rows = [
        ('{"x": {"y": 1.0}, "tags": ["b", "a"]}', '{"x": {"y": 1}, "tags": ["a", "b"]}', ""),
        ('{"x": {"y": true}, "made": 1}', '{"x": {"y": 1}, "tags": []}', ""),
        ("no", '{"x": {"y": 3}}', ""),
    ]
    figures = by_key(fields.measure(subject(Task("json"), rows)))
    exact, macro = figures["field_exactness_gold"], figures["field_macro_f1_gold"]
    assert exact.pairs == ((3.0, 3.0), (0.0, 2.0), (0.0, 1.0))
    # tags: TP 2, FN 1; x.y: TP 1, FP 1, FN 2; names that no reference has: FP 1
    assert macro.value == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)


def test_a_rationale_is_never_measured() -> None:
    task = Task("json", rationale="why")
    (exact, *_) = fields.measure(subject(task, [('{"why": "x", "n": 1}', '{"why": "y", "n": 1}', "")]))
    assert exact.value == 1.0


def test_numbers_are_decimal_and_within_the_tolerance() -> None:
    rows = [("0.10", "0.1", ""), ("1,000", "1000.4", ""), ("x", "5", "")]
    assert numbers.measure(subject(Task("number"), rows))[0].value == pytest.approx(1 / 3)
    assert numbers.measure(subject(Task("number", tolerance=0.5), rows))[0].value == pytest.approx(2 / 3)


def test_a_metric_of_another_type_and_a_teacher_beside_itself_say_nothing() -> None:
    assert labels.measure(subject(Task("number"), ROWS)) == ()
    assert numbers.measure(subject(LABEL, ROWS)) == ()
    itself = subject(LABEL, ROWS, role="teacher", wrote_before=True)
    assert [figure.key for figure in labels.measure(itself)] == ["label_accuracy_gold", "label_macro_f1_gold"]
    assert labels.measure(replace(itself, task=None)) == ()


def _ratio(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[:, 0] / sums[:, 1])


def test_a_statistic_of_counts_that_is_a_ratio_has_the_interval_and_difference_of_the_ratio() -> None:
    draws = np.random.default_rng(0)
    ours, theirs = (draws.integers(0, 4, size=(30, 2)) + np.array([0, 1]) for _ in range(2))
    plain = [stats.ratio(*counts.T.tolist(), seed=3) for counts in (ours, theirs)]
    counted = [stats.statistic(counts.tolist(), _ratio, seed=3) for counts in (ours, theirs)]
    for one, other in [
        *zip(plain, counted, strict=True),
        (stats.difference(*plain), stats.difference(*counted)),
    ]:
        assert (other.value, other.low, other.high, other.n) == pytest.approx(
            (one.value, one.low, one.high, one.n)
        )


def test_a_paired_difference_of_equal_counts_is_zero() -> None:
    one = labels.measure(subject(LABEL, ROWS))[1]
    same = stats.difference(one, one)
    assert (same.value, same.low, same.high, same.n) == (0.0, 0.0, 0.0, 4)
    assert stats.statistic([[0.0] * 9], labels.macro_f1).reason == "no prompt could be measured"
