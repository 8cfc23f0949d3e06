"""The values that flow through potstill."""

from __future__ import annotations

import pytest

from builders.losses import normal
from potstill.data.batch import collate
from potstill.errors import SignalError
from potstill.types import Example, Head, places_in_answers


@pytest.mark.parametrize("kind", ["bias", "lora"])
def test_a_part_of_a_head_with_too_few_rows_is_refused(kind):
    part = {"bias": normal(50)} if kind == "bias" else {"lora": (normal(2, 8), normal(50, 2), 1.0)}
    with pytest.raises(SignalError, match="50 rows, fewer than its vocabulary of 60"):
        Head(normal(60, 8), 60, **part)


@pytest.mark.parametrize("packed", [False, True])
def test_places_start_again_in_each_answer_of_a_conversation(packed):
    two = Example("a", (1, 10, 20, 21, 10, 22, 23, 24), tuple(i in (2, 3, 5, 6, 7) for i in range(8)))
    one = Example("b", (1, 10, 20, 21), (False, False, True, True))
    batch = collate([two, one], pad_id=0, packed=packed)
    assert places_in_answers(batch.predicts).tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert batch.example_counts().tolist() == [5] * 5 + [2] * 2


def test_a_prompt_that_waits_for_its_answer_is_planned_with_it_and_makes_no_batch():
    prompt = Example("p", (1, 10, 11), (False,) * 3, room=8)
    assert prompt.planned == (11, 8)
    assert prompt.prompt == prompt.input_ids
    assert prompt.silent().planned == (3, 0)
    with pytest.raises(ValueError, match="row p has no answer yet"):
        collate([prompt], pad_id=0)
