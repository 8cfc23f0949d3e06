"""Captures of several teachers say what these said alive."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from builders import captures
from builders.ensembles import WORDS, Tiny, ensemble, experts, routed_rows, said
from potstill.check.captured import looked_up
from potstill.data.batch import collate
from potstill.errors import CacheMiss, DataError
from potstill.stages import _captured
from potstill.stages._context import State
from potstill.stages._plan import each_once
from potstill.stages._training_rows import TrainingRows
from potstill.teachers._ensemble import EnsembleTeacher
from potstill.teachers._members import Member
from potstill.teachers.cached import reading_of


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("make", [experts, ensemble])
@pytest.mark.parametrize("packed", [False, True])
def test_captured_teachers_say_what_they_said_alive_in_any_order_and_packing(tmp_path, make, packed):
    rows = [row for row in routed_rows() if row.count]
    alive = [captures.teacher(seed=seed) for seed in (1, 2)]
    members = [
        Member(f"t{number}", captures.reading(captures.captured(tmp_path / str(number), rows, one), one))
        for number, one in enumerate(alive)
    ]
    how: dict[str, Any] = {}
    if make is experts:
        members = [
            replace(member, rows=frozenset({word})) for member, word in zip(members, WORDS, strict=True)
        ]
        how = {"route": "subject"}
    teacher = EnsembleTeacher(members, "probabilities", "", **how)
    assert not teacher.live
    for picked in (rows, rows[::-1], rows[2:5]):
        of = collate(picked, pad_id=0, packed=packed)
        wanted = [one.signal(of) for one in alive]
        sides = [(one.hidden @ one.head.weight.T).log_softmax(-1).exp() for one in wanted]
        even = torch.tensor([row.domain == "maths" for row in picked])[of.owners()].unsqueeze(-1)
        mixed = torch.where(even, *sides) if make is experts else (sides[0] + sides[1]) / 2
        torch.testing.assert_close(said(teacher, of), mixed.log(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("make", [experts, ensemble])
def test_rows_that_a_cache_of_an_ensemble_lacks_are_known_before_the_training(tmp_path, monkeypatch, make):
    """A row that a deadline cut off is left out where its teacher lacks it; one that was never captured is a miss."""
    rows = [row for row in routed_rows() if row.count]
    now = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now.append(now[-1] + 1.0) or now[-1])
        small = {"deadline": "4s", "shard_bytes": 64, "batch_tokens": 4}
        cut = captures.reading(captures.captured(tmp_path / "cut", rows, **small))
    whole = captures.reading(captures.captured(tmp_path / "whole", rows))
    teacher = make(cut, whole)
    lost = [
        row
        for row in rows
        if cut.not_reached(reading_of(row)) and (make is ensemble or row.domain == "maths")
    ]
    assert 0 < len(lost) < len(rows)
    where = captures.job(tmp_path, rows).context
    reached = _captured.reached("distill", TrainingRows(tuple(rows), ()), teacher, where)
    assert reached.train == tuple(row for row in rows if row not in lost)
    count, fault = looked_up(where.setup, "training", rows, teacher)
    assert not fault
    assert f"{len(lost)} were not captured before the deadline" in count
    foreign = replace(rows[0], input_ids=(5, *rows[0].input_ids[1:]))
    with pytest.raises(CacheMiss, match=f"no signal of row {foreign.id}"):
        _captured.reached("distill", TrainingRows((foreign,), ()), teacher, where)
    assert f"no signal of row {foreign.id}" in looked_up(where.setup, "training", [foreign], teacher)[1]


def test_a_capture_of_experts_keeps_what_each_rows_own_teacher_says(tmp_path):
    """And measures beside them, since no kind of cache holds all that several teachers say together."""
    rows = [row for row in routed_rows() if row.count]
    alive = experts(Tiny(1), Tiny(2))
    limit = {"signal": "topk", "max_kl_nats": None, "bytes_per_token": 10_000}
    artifact = captures.captured(tmp_path, rows, alive, **limit)
    assert artifact.facts["measured"]["tokens"] == sum(row.count for row in rows)
    cached = captures.reading(artifact, alive)
    for row in rows:
        of = collate([row], pad_id=0)
        got = cached.signal(of).whole()
        used = got.ids >= 0
        wanted = said(alive, of).gather(1, got.ids.clamp(min=0))
        torch.testing.assert_close(got.lp[used], wanted[used], atol=0.05, rtol=0.05)
    where = captures.job(tmp_path, rows, alive).context
    assert _captured.measuring(State(captured=artifact), where).provides >= {"dense"}


def test_one_text_for_two_experts_cannot_be_captured():
    row = next(row for row in routed_rows() if row.count)
    with pytest.raises(DataError, match=r"hold the same text.*maths and code"):
        each_once([replace(row, domain="maths"), replace(row, domain="code")])
