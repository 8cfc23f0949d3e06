"""Rows by what they are for: a few choose the best weights, and none that is measured on is trained on."""

from __future__ import annotations

import pytest

from builders.chats import chat
from builders.reading import rows
from potstill.data.dataset import Dataset, Parts, drop_heldout, with_validation
from potstill.data.rows import Row
from potstill.errors import DataError


@pytest.mark.parametrize(
    ("count", "held"), [(0, 0), (3, 0), (8, 2), (60, 15), (100, 16), (1000, 50), (9000, 200)]
)
def test_a_twentieth_validates_between_16_and_200_and_never_more_than_a_quarter(
    count: int, held: int
) -> None:
    parts = with_validation(rows(count), seed=0)
    assert (len(parts.train), len(parts.validation)) == (count - held, held)
    assert {row.id for row in (*parts.train, *parts.validation)} == {row.id for row in rows(count)}


def test_rows_of_one_prompt_are_all_trained_on() -> None:
    same = [Row(str(i), chat("q", str(i))) for i in range(40)]
    assert with_validation(same, seed=0) == Parts(tuple(same), ())


def test_rows_with_held_out_prompts_are_dropped() -> None:
    train, heldout = rows(3), rows(2)
    louder = Row("x", chat("QUESTION  r 0", "another answer"))
    text = Row("t", text="question r 0")
    assert [row.id for row in drop_heldout([*train, louder, text], heldout)] == ["r2", "t"]
    assert drop_heldout([], heldout) == []
    with pytest.raises(DataError, match="all 2 rows have held-out prompts"):
        drop_heldout(train[:2], heldout)


def test_rows_of_stages_are_trained_on_and_not_part_of_the_recipes_data() -> None:
    train, validation, heldout, more = (tuple(rows(1, name=name)) for name in "tvhm")
    data = Dataset(train, validation, heldout, "", {}, "", {"finetune": Parts(more, ())})
    assert set(map(id, data.trained_on)) == set(map(id, (*train, *validation, *more)))
    assert data.everything == train + validation + heldout
