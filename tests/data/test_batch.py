"""Masks, the shift of labels and positions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from builders.tiny import tiny_model
from potstill.data.batch import collate, left_pad
from potstill.types import Example, Reading


def example(ids: list[int], prompt: int, origin: str = "data", name: str = "r") -> Example:
    return Example(name, tuple(ids), tuple(i >= prompt for i in range(len(ids))), origin)  # type: ignore[arg-type]


def test_end_tokens_stay_visible_and_scored_when_pad_equals_eos() -> None:
    batch = collate([example([1, 10, 2, 11, 20, 21, 2], 4), example([5] * 9, 8)], pad_id=2)
    assert batch.input_ids[0].tolist() == [1, 10, 2, 11, 20, 21, 2, 2, 2]
    assert batch.attention_mask[0].tolist() == [1] * 7 + [0] * 2
    assert batch.targets[:3].tolist() == [20, 21, 2]
    assert batch.predicts[0].nonzero().flatten().tolist() == [3, 4, 5]


def test_a_logit_is_scored_against_the_next_token() -> None:
    batch = collate([example([4, 5, 6, 7, 2], 2)], pad_id=0)
    per_position = torch.tensor([[0.603052, 0.110944, 0.327813, 0.502282, 0.0]])
    assert per_position[batch.predicts].mean().item() == pytest.approx(0.313680, abs=1e-6)
    assert batch.targets.tolist() == [6, 7, 2]


def test_log_probabilities_of_the_time_of_drawing_stand_beside_their_targets() -> None:
    drawn = replace(example([1, 2, 3, 4], 2, "student"), student_lp=(-1.0, -2.0), teacher_lp=(-3.0, -4.0))
    batch = collate([example([7, 8], 1), drawn], pad_id=0)
    assert batch.targets.tolist() == [8, 3, 4]
    assert batch.student_lp is not None
    assert batch.teacher_lp is not None
    assert batch.student_lp[0].isnan()
    assert batch.student_lp[1:].tolist() == [-1.0, -2.0]
    assert batch.teacher_lp[0].isnan()
    assert batch.teacher_lp[1:].tolist() == [-3.0, -4.0]
    assert collate([drawn.silent()], pad_id=0).student_lp is None


def test_as_many_log_probabilities_as_scored_tokens_are_needed() -> None:
    with pytest.raises(ValueError, match="scores 2 tokens, student_lp has 1"):
        collate([replace(example([1, 2, 3, 4], 2, "student"), student_lp=(-1.0,))], pad_id=0)


def test_a_one_token_answer_has_exactly_one_scored_position() -> None:
    batch = collate([example([4, 5, 6], 2)], pad_id=0)
    assert batch.count == 1
    assert batch.predicts.tolist() == [[False, True, False]]


def test_several_spans_each_keep_their_own_target() -> None:
    mask = [c == "1" for c in "0011001110"]
    batch = collate([Example("r", tuple(range(10)), tuple(mask))], pad_id=0)
    logits_at = batch.predicts[0].nonzero().flatten()
    assert batch.targets.tolist() == (logits_at + 1).tolist() == [2, 3, 6, 7, 8]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5), st.integers(1, 16)
)
def test_padding_changes_nothing_that_is_scored(sizes: list[tuple[int, int]], longer: int) -> None:
    rows = [example(list(range(4, 4 + n)), min(p, n)) for n, p in sizes]
    together = collate([*rows, example([4] * longer, longer)], pad_id=0)
    alone = [collate([row], pad_id=0) for row in rows]
    assert together.input_ids.shape[1] == max(longer, *(len(row.input_ids) for row in rows))
    assert together.targets.tolist() == [t for batch in alone for t in batch.targets.tolist()]
    assert together.predicts.sum(1).tolist() == [*(batch.count for batch in alone), 0]
    assert together.attention_mask.sum(1).tolist() == [*(len(row.input_ids) for row in rows), longer]
    for b, row in enumerate(rows):
        length = len(row.input_ids)
        assert together.position_ids[b, :length].tolist() == list(range(length))
        assert together.position_ids[b].max() == length - 1


def test_the_loss_of_a_row_does_not_depend_on_its_padding() -> None:
    model = tiny_model()
    row, long = example([1, 10, 11, 20, 21, 2], 3), example([7] * 50, 49)

    def loss(rows: list[Example]) -> float:
        batch = collate(rows, pad_id=2)
        logits = model(
            batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids
        ).logits
        nats = torch.nn.functional.cross_entropy(logits[batch.predicts], batch.targets, reduction="none")
        return float(nats[:3].sum())

    with torch.no_grad():
        assert loss([row, long]) == pytest.approx(loss([row]), abs=1e-4)


def test_hard_labels_leave_out_what_the_student_wrote() -> None:
    rows = [example([4, 5, 6], 1, "student"), example([4, 5, 6], 2, "teacher"), example([4, 5], 1, "data")]
    assert collate(rows, pad_id=0).hard.tolist() == [False, False, True, True]


def test_a_batch_in_which_nothing_is_scored_is_still_a_batch() -> None:
    batch = collate([example([4, 5], 2)], pad_id=0)
    assert (batch.count, batch.targets.shape, batch.hard.shape) == (0, (0,), (0,))


def test_ids_beyond_16_bits_survive() -> None:
    batch = collate([example([65536, 70000, 131071], 1)], pad_id=0)
    assert batch.targets.tolist() == [70000, 131071]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        collate([], pad_id=0)
    with pytest.raises(ValueError, match="at least one prompt token"):
        left_pad([[1], []], 0)


def test_left_padding_counts_positions_from_the_first_real_token() -> None:
    ids, mask, positions = left_pad([[5, 6, 7], [8]], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_left_padding_leaves_learned_positions_alone() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    model = GPT2LMHeadModel(config).eval()
    ids, mask, positions = left_pad([[5, 6, 7, 8], [9] * 7], pad_id=0)
    with torch.no_grad():
        alone = model(torch.tensor([[5, 6, 7, 8]])).logits[0]
        padded = model(ids, attention_mask=mask, position_ids=positions).logits[0, 3:]
        without = model(ids, attention_mask=mask).logits[0, 3:]
    assert (alone - padded).abs().max() <= 1e-4
    assert (alone - without).abs().max() > 1e-2


def read_twice(id: str, student: int, teacher: int, scored: int = 3) -> Example:
    """A row of these lengths whose last tokens are scored; the teacher's ids count down from 100."""
    return Example(
        id,
        tuple(range(4, 4 + student)),
        tuple(i >= student - scored for i in range(student)),
        weight=2.0,
        reading=Reading(
            tuple(range(100, 100 - teacher, -1)), tuple(i >= teacher - scored for i in range(teacher))
        ),
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_holds_the_teachers_reading_beside_the_students(packed):
    batch = collate([read_twice("a", 8, 5), read_twice("b", 6, 9)], pad_id=3, packed=packed)
    theirs = batch.for_teacher
    assert theirs is batch.teacher
    assert theirs.count == batch.count == 6
    assert theirs.targets.tolist() == [98, 97, 96, 94, 93, 92]
    assert theirs.row_ids == batch.row_ids
    assert batch.weights.tolist() == [2.0] * 6
    assert theirs.weights is None
    assert batch.to("meta").teacher.input_ids.is_meta


def test_a_batch_of_one_reading_is_given_to_the_teacher_as_it_is():
    batch = collate([Example("a", (4, 5, 6), (False, True, True))], pad_id=0)
    assert batch.teacher is None
    assert batch.for_teacher is batch


def test_readings_that_score_other_numbers_of_tokens_are_refused():
    example = read_twice("a", 8, 5)
    longer = replace(example, reading=Reading((9, 8, 7), (False, True, True)))
    with pytest.raises(ValueError, match="row a scores 3 tokens, its reading of the teacher 2"):
        collate([longer], pad_id=0)
    with pytest.raises(ValueError, match="row b has no reading of the teacher"):
        collate([example, replace(example, id="b", reading=None)], pad_id=0)
