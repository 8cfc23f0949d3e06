"""Signals that are kept are those that the teacher gives, each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from builders.steps import local_teacher
from potstill.data.batch import collate, rows_of
from potstill.signals.topk import TopK
from potstill.train.kept import KeptSignals
from potstill.types import Batch, Example

ROWS = [
    Example("a@1", (1, 10, 11, 20, 21, 2), (False,) * 3 + (True,) * 3, "student"),
    Example("b@1", (1, 12, 30), (False, False, True), "student"),
    Example("c", (1, 13, 11, 14), (False, False, True, True)),
]


class Counting:
    """A teacher that counts its passes; `topk` makes it give stored ids."""

    name = fingerprint = "counting"
    provides = frozenset({"dense"})
    reads: Any = None

    def __init__(self, *, topk: bool = False) -> None:
        self._teacher = local_teacher()
        self._topk = topk
        self.passes: list[tuple[str, ...]] = []

    def signal(self, batch: Batch) -> Any:
        self.passes.append(batch.row_ids)
        hidden = self._teacher.signal(batch)
        if not self._topk:
            return hidden
        logits = hidden.hidden @ hidden.head.weight.T
        top = logits.log_softmax(-1).topk(4)
        return TopK(top.indices, top.values, {2.0: (logits / 2).logsumexp(-1)})

    def close(self) -> None:
        return None


def kept(returning: Sequence[str], **how: bool) -> tuple[KeptSignals, Counting]:
    teacher = Counting(**how)
    return KeptSignals(teacher, lambda: returning), teacher


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_a_batch_are_the_rows_that_it_was_made_of(packed):
    rows = rows_of(collate(ROWS, pad_id=0, packed=packed))
    for row, example in zip(rows, ROWS, strict=True):
        alone = collate([example], pad_id=0)
        for name in ("input_ids", "attention_mask", "position_ids", "predicts", "targets"):
            assert torch.equal(getattr(row, name), getattr(alone, name)), name
        assert row.row_ids == (example.id,)


@pytest.mark.parametrize("packed", [False, True])
def test_a_kept_signal_is_the_teachers_whatever_stands_beside_it(packed):
    teacher, counting = kept(["a@1", "b@1", "c"])
    batch = collate(ROWS, pad_id=0, packed=packed)
    wanted = local_teacher().signal(batch).hidden
    torch.testing.assert_close(teacher.signal(batch).hidden, wanted, atol=1e-5, rtol=1e-5)
    again = teacher.signal(collate(ROWS[:2], pad_id=0)).hidden
    assert torch.equal(again, teacher.signal(batch).hidden[:4])
    assert sorted(counting.passes) == [("a@1",), ("b@1",), ("c",)]


def test_stored_ids_are_kept_with_their_normalisers():
    teacher, counting = kept(["a@1", "b@1"], topk=True)
    batch = collate(ROWS[:2], pad_id=0)
    teacher.signal(batch)
    signal = teacher.signal(batch)
    assert len(counting.passes) == 2
    wanted = counting.signal(batch)
    torch.testing.assert_close(signal.lp, wanted.lp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(signal.lse[2.0], wanted.lse[2.0], atol=1e-5, rtol=1e-5)


def test_rows_that_do_not_return_are_read_together_and_not_kept():
    teacher, counting = kept([])
    batch = collate(ROWS, pad_id=0)
    for _ in range(2):
        teacher.signal(batch)
    assert counting.passes == [("a@1", "b@1", "c")] * 2


def test_a_signal_is_dropped_when_its_row_returns_no_more():
    returning = ["a@1"]
    teacher, counting = kept(returning)
    batch = collate(ROWS[:1], pad_id=0)
    teacher.signal(batch)
    returning.clear()
    teacher.signal(collate(ROWS[2:], pad_id=0))
    returning.append("a@1")
    teacher.signal(batch)
    assert counting.passes == [("a@1",), ("c",), ("a@1",)]
