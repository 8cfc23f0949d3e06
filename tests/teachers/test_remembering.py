"""A teacher that remembers is asked once about a row, and says the same ever after."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from builders import captures
from builders.captures import rows
from builders.jobs import context
from builders.tiny import tiny_model
from potstill.data.batch import collate
from potstill.divergences import forward_kl
from potstill.objectives.token import Divergence, TokenLoss
from potstill.stages._captured import teaching
from potstill.stages._context import State
from potstill.stages.distill import Distill
from potstill.teachers._remembering import Remembering
from potstill.train.kept import KeptSignals
from potstill.train.step import StudentModule, accumulate

ROWS = rows(8)


class Counted:
    """A live teacher and the rows that it was asked about."""

    def __init__(self) -> None:
        self._teacher: Any = captures.teacher()
        self.asked: list[str] = []
        self.fingerprint, self.dtype, self.provides = "counted", torch.float32, frozenset({"dense"})
        self.name, self.reads = "counted", None

    def signal(self, batch: Any) -> Any:
        self.asked += batch.row_ids
        return self._teacher.signal(batch)

    def close(self) -> None:
        return None


@pytest.mark.parametrize("packed", [False, True])
def test_each_row_is_asked_about_once_and_has_one_target(tmp_path, packed):
    live = Counted()
    teacher = Remembering(live, tmp_path, 128)
    first = teacher.signal(collate(ROWS[:5], pad_id=0, packed=packed))
    mixed = teacher.signal(collate(ROWS[3:], pad_id=0, packed=packed))
    assert sorted(live.asked) == sorted(row.id for row in ROWS)
    teacher.expect([ROWS[:5], ROWS[3:]])
    again = [teacher.signal(collate(part, pad_id=0)) for part in (ROWS[:5], ROWS[3:])]
    assert len(live.asked) == len(ROWS)
    assert torch.equal(first.hidden, again[0].hidden)
    assert torch.equal(mixed.hidden, again[1].hidden)
    wanted = live._teacher.signal(collate(ROWS[:5], pad_id=0)).hidden
    torch.testing.assert_close(first.hidden, wanted, atol=1e-2, rtol=2**-10)
    assert teacher.provides == live.provides
    assert teacher.fingerprint != live.fingerprint
    teacher.close()


def test_a_student_s_text_is_written_down_where_it_returns(tmp_path):
    """Replayed rollouts are asked about once, also by a run that goes on; text that is trained on once leaves nothing."""
    live = Counted()
    teacher = Remembering(live, tmp_path, 128)
    rollouts = [replace(row, id=f"{row.id}@0", origin="student") for row in ROWS[:4]]
    once, twice, rows = rollouts[:2], rollouts[2:], ROWS[4:]
    returning = KeptSignals(teacher, lambda: {row.id for row in twice})
    first = [returning.signal(collate(part, pad_id=0)) for part in (once, twice, [*once, *rows])]
    assert Counter(live.asked) == Counter([row.id for row in (*once, *twice, *once, *rows)])
    teacher.close()
    again = Remembering(live, tmp_path, 128)
    live.asked.clear()
    resumed = KeptSignals(again, lambda: {row.id for row in twice})
    assert torch.equal(resumed.signal(collate(twice, pad_id=0)).hidden, first[1].hidden)
    resumed.signal(collate(rows, pad_id=0))
    assert live.asked == []
    resumed.signal(collate(once, pad_id=0))
    assert live.asked == [row.id for row in once]
    again.close()


def test_a_stage_whose_student_writes_is_given_a_teacher_that_remembers(tmp_path):
    """Not one in parts, whose passes need all processes."""
    live = Counted()
    live.remembers, live.sharded = True, False
    where, spec = context(tmp_path, live), Distill(strategy={"on_policy": {}})
    assert isinstance(teaching(spec, State(), where), Remembering)
    live.sharded = True
    assert teaching(spec, State(), where) is live


def test_another_process_reads_what_one_has_written(tmp_path):
    """Both write parts of their own, and find each other's rows from the next epoch on."""
    one, other = Counted(), Counted()
    teachers = Remembering(one, tmp_path, 128), Remembering(other, tmp_path, 128)
    halves = [collate(ROWS[:4], pad_id=0), collate(ROWS[4:], pad_id=0)]
    said = [teacher.signal(half).hidden for teacher, half in zip(teachers, halves, strict=True)]
    for teacher in teachers:
        teacher.expect([ROWS[:4], ROWS[4:]])
    crossed = [teacher.signal(half).hidden for teacher, half in zip(teachers, reversed(halves), strict=True)]
    assert torch.equal(crossed[0], said[1])
    assert torch.equal(crossed[1], said[0])
    assert len(one.asked) == len(other.asked) == 4
    for teacher in teachers:
        teacher.close()


def test_a_training_that_goes_on_in_the_first_epoch_sees_the_numbers_of_an_undisturbed_one(tmp_path):
    loss = TokenLoss(Divergence.from_module(forward_kl))

    def steps(teacher: Any, begin: int, end: int) -> list[float]:
        module = StudentModule(tiny_model(seed=7, layers=1), 128)
        results = []
        for start in range(begin, end):
            result = accumulate(module, teacher, [collate(ROWS[start % 8 : start % 8 + 2], pad_id=0)], loss)
            assert result is not None
            results.append(result.loss)
        teacher.close()
        return results

    undisturbed = steps(Remembering(Counted(), tmp_path / "calm", 128), 0, 10)
    before = steps(Remembering(Counted(), tmp_path / "cut", 128), 0, 5)
    assert before + steps(Remembering(Counted(), tmp_path / "cut", 128), 5, 10) == undisturbed
