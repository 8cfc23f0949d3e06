"""Rows that are measured on are never trained on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.chats import chat
from builders.reading import rows
from potstill.data.rows import Row
from potstill.data.split import Overlap, overlap, split_heldout
from potstill.errors import DataError


@pytest.mark.parametrize(
    ("count", "held"),
    [(2, 1), (40, 13), (100, 33), (180, 60), (300, 60), (1000, 100), (5000, 500), (9000, 500)],
)
def test_a_tenth_is_held_out_between_60_and_500_and_never_more_than_a_third(count: int, held: int) -> None:
    train, heldout = split_heldout(rows(count))
    assert (len(train), len(heldout)) == (count - held, held)


def test_a_stated_fraction_is_taken_as_it_is() -> None:
    assert len(split_heldout(rows(1000), fraction=0.02)[1]) == 20
    assert len(split_heldout(rows(10), fraction=0.999)[0]) == 1


@given(st.integers(2, 150), st.integers(1, 7), st.integers(0, 3))
def test_rows_that_share_a_prompt_stay_together(count: int, per_prompt: int, seed: int) -> None:
    if count <= per_prompt:
        count = per_prompt + 1
    given_rows = rows(count, per_prompt)
    train, heldout = split_heldout(given_rows, seed=seed)
    assert heldout
    assert len(heldout) <= (count // 2 if per_prompt > 1 else max(1, count // 3))
    assert not {row.prompt_text for row in train} & {row.prompt_text for row in heldout}
    assert sorted(r.id for r in (*train, *heldout)) == sorted(r.id for r in given_rows)


def test_case_and_spaces_do_not_make_another_prompt() -> None:
    twins = [Row("a", chat("What  is it?", "x")), Row("b", chat("what is it?\n", "y"))]
    with pytest.raises(DataError, match=r"cannot be split.*data\.heldout"):
        split_heldout(twins)


def test_later_turns_do_not_make_another_prompt() -> None:
    short, long = Row("a", chat("q", "x")), Row("b", chat("q", "x", "more", "y"))
    train, heldout = split_heldout([short, long, *rows(2)])
    assert ({"a", "b"} <= {r.id for r in train}) or ({"a", "b"} <= {r.id for r in heldout})


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    shuffled = rows(300)
    random.Random(0).shuffle(shuffled)
    assert {r.id for r in split_heldout(rows(300))[1]} == {r.id for r in split_heldout(shuffled)[1]}
    assert {r.id for r in split_heldout(rows(300), seed=1)[1]} != {r.id for r in split_heldout(rows(300))[1]}


def prompts(*texts: str) -> list[Row]:
    return [Row(f"r{i}", chat(text)) for i, text in enumerate(texts)]


def test_overlap_separates_exact_from_near_from_a_shared_phrase() -> None:
    train = prompts("One two three four five six seven eight nine ten", "a b c d e", "p q r s t u v w x y z")
    heldout = prompts(
        "one  two three four five six seven eight nine TEN",  # exact, and so near, and a shared phrase
        "e d c b a",  # the same words
        "before p q r s t u v w after that and much else besides",  # a shared phrase
        "something else",
    )
    assert overlap(train, heldout) == Overlap(exact=1, gram=2, near=2, of=4)


@given(
    st.lists(st.frozensets(st.sampled_from("abcdefghij"), min_size=1), max_size=12),
    st.lists(st.frozensets(st.sampled_from("abcdefghij"), min_size=1), max_size=12),
)
def test_the_shortcut_for_near_prompts_finds_what_comparing_all_finds(
    train: list[frozenset[str]], heldout: list[frozenset[str]]
) -> None:
    result = overlap(prompts(*(" ".join(w) for w in train)), prompts(*(" ".join(w) for w in heldout)))
    near = sum(any(len(h & t) >= 0.8 * len(h | t) for t in train) for h in heldout)
    assert result.near == near
