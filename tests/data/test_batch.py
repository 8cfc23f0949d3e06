"""Padding, the one shift, and the plan of an epoch."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.data.batch import collate, left_pad
from potstill.data.mix import padded, plan_steps, shard
from potstill.types import Example


def example(*ids: int, scored: str, id: str = "e", origin: str = "data") -> Example:
    return Example(id, ids, tuple(c == "1" for c in scored), origin)


def test_logits_at_a_position_are_scored_against_the_next_token():
    batch = collate([example(5, 6, 7, 8, 9, scored="00111")], pad_id=0)
    assert batch.predicts.tolist() == [[False, True, True, True, False]]
    assert batch.targets.tolist() == [7, 8, 9]


def test_a_one_token_answer_scores_exactly_one_position():
    assert collate([example(5, 6, 7, scored="001")], pad_id=0).count == 1


def test_scores_of_several_spans_keep_their_own_index():
    batch = collate([example(*range(20, 30), scored="0011001110")], pad_id=0)
    assert batch.targets.tolist() == [22, 23, 26, 27, 28]
    assert batch.predicts[0].nonzero().flatten().tolist() == [1, 2, 5, 6, 7]


def test_padding_adds_no_scored_position_whatever_the_width():
    rows = [example(5, 6, 7, scored="011"), example(5, 6, scored="01")]
    narrow, wide = collate(rows, pad_id=0), collate(rows, pad_id=0, multiple_of=50)
    assert narrow.targets.tolist() == wide.targets.tolist() == [6, 7, 6]
    assert wide.input_ids.shape == (2, 50)
    assert wide.attention_mask.sum() == 5


def test_the_students_own_text_is_not_a_hard_label():
    rows = [example(5, 6, scored="01"), example(5, 7, scored="01", origin="student")]
    assert collate(rows, pad_id=0).hard.tolist() == [True, False]


def test_left_padding_counts_positions_from_the_first_real_token():
    ids, mask, positions = left_pad([[5, 6, 7], [8]], pad_id=0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions[1, -1] == 0


sizes = st.lists(st.tuples(st.integers(2, 60), st.integers(0, 40)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 120), st.integers(1, 200), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_within_its_budgets(rows, tokens, micro, epoch):
    lengths, counts = [r[0] for r in rows], [min(r) for r in rows]
    plan = plan_steps(lengths, counts, tokens_per_step=tokens, micro_batch_tokens=micro, seed=1, epoch=epoch)
    assert sorted(row for step in plan for m in step for row in m) == list(range(len(rows)))
    for step in plan:
        assert all(len(m) == 1 or padded(m, lengths) <= micro for m in step)
    for step in plan[:-1]:
        assert sum(counts[row] for m in step for row in m) >= tokens
    again = plan_steps(lengths, counts, tokens_per_step=tokens, micro_batch_tokens=micro, seed=1, epoch=epoch)
    assert plan == again


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 4))
def test_ranks_share_a_step_without_losing_or_doubling_a_row(rows, world):
    lengths = [r[0] for r in rows]
    (step,) = plan_steps(
        lengths, [1] * len(rows), tokens_per_step=10**6, micro_batch_tokens=80, seed=0, epoch=0
    )
    shares = [shard(step, rank, world, lengths=lengths) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for m in share for row in m) == list(range(len(rows)))


def test_epochs_are_shuffled_differently():
    lengths = list(range(2, 42))
    plans = [
        plan_steps(lengths, lengths, tokens_per_step=50, micro_batch_tokens=100, seed=0, epoch=e)
        for e in (0, 1)
    ]
    assert plans[0] != plans[1]
