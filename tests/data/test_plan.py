"""Steps, micro-batches and ranks: every row once, within budget, the same every time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from potstill.data.plan import by_length, padded, plan_steps, shard

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=1, max_size=80)


@given(SIZES, st.integers(1, 300), st.integers(1, 200), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_is_a_partition_within_both_budgets(
    sizes: list[tuple[int, int]], per_step: int, budget: int, seed: int, epoch: int
) -> None:
    lengths, counts = [n for n, _ in sizes], [min(c, n) for n, c in sizes]
    steps = plan_steps(
        lengths, counts, tokens_per_step=per_step, micro_batch_tokens=budget, seed=seed, epoch=epoch
    )
    rows = [row for step in steps for micro in step for row in micro]
    assert sorted(rows) == list(range(len(sizes)))
    for step in steps:
        assert all(step)
        assert all(padded(micro, lengths) <= budget or len(micro) == 1 for micro in step)
    scored = [sum(counts[row] for micro in step for row in micro) for step in steps]
    assert all(count >= per_step for count in scored[:-1])
    largest = max(counts)
    assert all(count < per_step + max(largest, 1) for count in scored)


def _plan(seed: int, epoch: int) -> list[list[list[int]]]:
    lengths = list(range(1, 101))
    return plan_steps(lengths, lengths, tokens_per_step=200, micro_batch_tokens=150, seed=seed, epoch=epoch)


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    assert _plan(3, 1) == _plan(3, 1)
    assert _plan(3, 1) != _plan(3, 2)
    assert _plan(3, 1) != _plan(4, 1)
    assert _plan(1, 11) != _plan(11, 1)


def test_rows_of_like_length_share_a_micro_batch() -> None:
    lengths = [10, 100] * 8
    (step,) = plan_steps(lengths, lengths, tokens_per_step=10**6, micro_batch_tokens=400, seed=0, epoch=0)
    assert all(len({lengths[row] for row in micro}) == 1 for micro in step)
    assert len(step) == 3


@given(st.lists(st.integers(1, 99), max_size=30), st.integers(1, 200))
def test_batches_by_length_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    batches = by_length(lengths, tokens)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    assert all(len(batch) == 1 or padded(batch, lengths) <= tokens for batch in batches)


@given(SIZES, st.integers(1, 200), st.integers(1, 9))
def test_ranks_share_a_step_without_losing_or_repeating_rows(
    sizes: list[tuple[int, int]], budget: int, world: int
) -> None:
    lengths = [n for n, _ in sizes]
    (step,) = plan_steps(lengths, lengths, tokens_per_step=10**9, micro_batch_tokens=budget, seed=0, epoch=0)
    before = [list(micro) for micro in step]
    shares = [shard(step, rank, world, lengths=lengths) for rank in range(world)]
    assert step == before
    assert len({len(share) for share in shares}) == 1
    rows = [row for share in shares for micro in share for row in micro]
    assert sorted(rows) == list(range(len(sizes)))
    largest = max(padded(micro, lengths) for micro in step)
    assert all(padded(micro, lengths) <= largest for share in shares for micro in share)


def test_equal_rows_are_shared_equally() -> None:
    lengths = [10] * 64
    (step,) = plan_steps(lengths, lengths, tokens_per_step=10**6, micro_batch_tokens=160, seed=0, epoch=0)
    loads = [sum(padded(m, lengths) for m in shard(step, rank, 4, lengths=lengths)) for rank in range(4)]
    assert loads == [160] * 4


def test_fewer_rows_than_ranks_leaves_some_with_an_empty_micro_batch() -> None:
    shares = [shard([[0, 1]], rank, 3, lengths=[5, 5]) for rank in range(3)]
    assert sorted(map(len, shares)) == [1, 1, 1]
    assert sorted(len(micro) for share in shares for micro in share) == [0, 1, 1]
