"""Weights of rows, from a named column to the gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builders import places
from builders.cli import potstill
from builders.tiny import tiny_model
from potstill.data.answers import with_weights
from potstill.data.batch import collate
from potstill.data.rows import Row
from potstill.divergences import forward_kl
from potstill.objectives.token import Divergence, TokenLoss
from potstill.teachers.local import LocalTeacher
from potstill.train.step import StudentModule, accumulate, each_row_once
from potstill.types import Example

LOSS = TokenLoss(Divergence.from_module(forward_kl))


def row(name: str, first: int, answer: int, weight: float = 1.0) -> Example:
    ids = tuple(range(first, first + 3 + answer))
    return Example(name, ids, (False,) * 3 + (True,) * answer, weight=weight)


def gradient(batches, by_row: bool = False) -> list[torch.Tensor]:
    module = StudentModule(tiny_model(seed=0), 128)
    teacher = LocalTeacher(tiny_model(seed=1), vocabulary=128, fingerprint="t")
    accumulate(module, teacher, [each_row_once(b) for b in batches] if by_row else batches, LOSS)
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("by_row", [False, True])
def test_a_weight_of_two_is_the_row_given_twice(packed, by_row):
    twice = [row("a", 10, 4), row("a'", 10, 4), row("b", 40, 7)]
    weighed = [row("a", 10, 4, 2.0), row("b", 40, 7)]
    one, other = (gradient([collate(rows, pad_id=0, packed=packed)], by_row) for rows in (twice, weighed))
    for got, wanted in zip(other, one, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_weights_do_not_depend_on_the_split_into_micro_batches():
    rows = [row("a", 10, 4, 3.0), row("b", 40, 7), row("c", 60, 2, 0.5)]
    whole = gradient([collate(rows, pad_id=0)])
    cut = gradient([collate([r], pad_id=0) for r in rows])
    for got, wanted in zip(cut, whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_recipe_names_the_column_of_weights(tmp_path):
    """Rows of weight 0 teach nothing: whatever they answer, each training loss is the same."""
    rows = [r | {"importance": i % 2} for i, r in enumerate(places.answered(80))]
    other = [r | ({} if r["importance"] else {"response": "w99 w98"}) for r in rows]
    weighed, unweighed = "{train: rows.jsonl, weight: importance}", "{train: rows.jsonl}"
    stages = "[{finetune: {steps: 3, tokens_per_step: 100000, best_by: cross_entropy}}]"

    def losses(rows: list[dict[str, object]], data: str) -> list[float]:
        places.write(tmp_path, rows, data=data, stages=stages)
        done = potstill("run", "r.yaml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [step["loss"] for step in places.steps(tmp_path, "finetune")]

    first = losses(rows, weighed)
    assert len(set(first)) == 3
    assert losses(other, weighed) == pytest.approx(first, rel=1e-6)
    assert losses(other, unweighed) != pytest.approx(losses(rows, unweighed), rel=1e-2)
    assert losses(rows, unweighed) != pytest.approx(first, rel=1e-2)


def test_a_second_answer_may_meet_a_row_of_that_name():
    """Answer 1 to row "a" and a row named "a#1" may meet in one run."""
    rows = [Row("a", (), extra={"importance": 3}), Row("a#1", (), extra={"importance": 5})]
    examples = [row("a", 10, 4), replace(row("a#1", 10, 4), part_of="a"), row("a#1", 40, 7)]
    assert [e.weight for e in with_weights(examples, rows, "importance")] == [3, 3, 5]


@pytest.mark.parametrize("value", [-1, "much", None, True])
def test_a_weight_that_is_no_number_from_zero_up_is_refused_with_its_line(tmp_path, value):
    rows = [r | {"importance": value} for r in places.answered()]
    places.write(tmp_path, rows, data="{train: rows.jsonl, weight: importance}")
    done = potstill("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "rows.jsonl:" in done.stderr
    assert "importance" in done.stderr
