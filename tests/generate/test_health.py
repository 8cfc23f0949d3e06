"""Health of rollouts: figures that a looping, rambling or silent student shows first."""

from __future__ import annotations

import pytest

from potstill.generate.health import health, repeated


def test_a_text_without_repeats_has_no_repeated_grams():
    assert repeated(range(10)) == (0, 7)


def test_a_loop_of_two_ids_repeats_all_but_two_grams():
    assert repeated([5, 6] * 10) == (15, 17)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_text_shorter_than_a_gram_has_none(length):
    assert repeated([7] * length) == (0, 0)


def test_repetition_counts_grams_of_all_rollouts_and_never_across_them():
    values = health([[5, 6] * 10, [5, 6, 5, 6, 2]], [True, False])
    assert values["repetition"] == 15 / 19


def test_lengths_and_truncation_are_means_over_rollouts():
    values = health([[4, 5, 2], [4, 5, 6, 7, 8]], [False, True])
    assert values["rollouts"] == 2
    assert values["rollout_tokens"] == 8
    assert values["rollout_length"] == 3.5  # the end token is no part of a length
    assert values["truncated"] == 0.5


@pytest.mark.parametrize("silent", [[2], []])
def test_a_rollout_that_stops_at_once_is_empty(silent):
    assert health([silent, [4, 2]], [False, False])["empty"] == 0.5


def test_one_id_that_the_limit_cuts_is_not_empty():
    assert health([[4]], [True])["empty"] == 0.0


def test_a_step_without_rollouts_has_counts_and_no_shares():
    assert health([], []) == {"rollouts": 0, "rollout_tokens": 0}
