"""Sources in stated shares: exact, drawn by a seed, and refused with their numbers where they are impossible."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders.recipes import problems
from potstill.data.mix import GENERATED, Plan, mixed
from potstill.errors import DataError
from potstill.types import Example


def rows(name: str, *tokens: int) -> list[Example]:
    """Rows with these numbers of scored tokens, behind a prompt of two."""
    return [Example(f"{name}{i}", (1,) * (2 + n), (False,) * 2 + (True,) * n) for i, n in enumerate(tokens)]


def taken(plan: Plan, **sources: list[Example]) -> dict[str, int]:
    """How many rows of each source, where all have one token."""
    return {one.source: one.rows for one in mixed(plan, sources)[1]}


def test_shares_of_rows_are_exact_and_as_many_rows_as_they_allow_are_taken() -> None:
    plan = Plan(((GENERATED, 0.7), ("real", 0.3)))
    assert taken(plan, **{GENERATED: rows("g", *[1] * 100), "real": rows("r", *[1] * 30)}) == {
        GENERATED: 70,
        "real": 30,
    }
    # 0.7 of 10 is 7 in the decimal that the recipe writes, not in binary.
    assert taken(plan, **{GENERATED: rows("g", *[1] * 7), "real": rows("r", *[1] * 90)}) == {
        GENERATED: 7,
        "real": 3,
    }


@given(
    st.lists(st.integers(1, 97), min_size=2, max_size=5),
    st.tuples(*[st.integers(20, 200)] * 5),
)
def test_counts_add_up_and_none_is_a_whole_row_from_its_share(
    weights: list[int], sizes: tuple[int, ...]
) -> None:
    shares = [Fraction(weight, 1000) for weight in weights[1:]]
    shares.insert(0, 1 - sum(shares))
    plan = Plan(tuple((f"s{i}", float(share)) for i, share in enumerate(shares)))
    sources = {f"s{i}": rows(f"s{i}-", *[1] * sizes[i]) for i in range(len(shares))}
    try:
        counts = taken(plan, **sources)
    except DataError as error:
        assert "less than one row" in error.message
        return
    total = sum(counts.values())
    assert total == int(min(sizes[i] / share for i, share in enumerate(shares)))
    assert all(abs(counts[f"s{i}"] - share * total) < 1 for i, share in enumerate(shares))
    assert all(counts[f"s{i}"] <= sizes[i] for i in range(len(shares)))


@given(
    st.lists(st.integers(1, 40), min_size=8, max_size=20),
    st.lists(st.integers(1, 40), min_size=8, max_size=20),
)
@example([1] * 8, [6] + [1] * 7)
def test_shares_of_tokens_hold_to_half_a_row(one: list[int], other: list[int]) -> None:
    plan = Plan((("one", 0.75), ("other", 0.25)), by="tokens")
    total = min(sum(one) / Fraction(3, 4), sum(other) / Fraction(1, 4))
    try:
        _, report = mixed(plan, {"one": rows("a", *one), "other": rows("b", *other)})
    except DataError as error:  # a long first row, of which no half is due
        assert "less than one row of other" in error.message
        assert total / 4 <= Fraction(max(other), 2)
        return
    for part, sizes in zip(report, (one, other), strict=True):
        assert abs(part.tokens - total * Fraction(repr(part.share))) <= Fraction(max(sizes), 2)


def test_a_draw_depends_on_the_seed_and_on_ids_never_on_the_order_of_rows() -> None:
    many, few = rows("g", *[1] * 50), rows("r", *[1] * 20)
    ids = [
        {example.id for example in mixed(Plan((("g", 0.5), ("r", 0.5)), seed=seed), {"g": part, "r": few})[0]}
        for seed, part in ((0, many), (0, many[::-1]), (1, many))
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 40


def test_turns_of_one_conversation_are_taken_together_and_answers_to_one_prompt_are_not() -> None:
    turns = [Example(f"c#{i}", (1, 2), (False, True), part_of="c", share=0.5) for i in range(2)]
    drawn = [Example(f"p#{i}", (1, 2), (False, True), part_of="p") for i in range(2)]
    examples, report = mixed(Plan((("turns", 0.5), ("drawn", 0.5))), {"turns": turns, "drawn": drawn})
    assert [(one.rows, one.of_rows) for one in report] == [(1, 1), (1, 2)]
    assert [example.id for example in examples][:2] == ["c#0", "c#1"]
    assert len(examples) == 3


def test_one_source_alone_is_all_of_it_in_its_order() -> None:
    examples = rows("r", 3, 1, 2)
    assert mixed(Plan((("r", 1.0),)), {"r": examples})[0] == examples


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            Plan((("a", 0.7), ("b", 0.3)), total=100),
            "0.7 of 100 rows are 70, and a has 40. These shares allow 57 rows",
        ),
        (Plan((("a", 0.99), ("b", 0.01))), "0.01 of 40 rows is less than one row of b"),
        (Plan((("a", 0.5), ("none", 0.5))), "none is to be 0.5 of what is trained on, and none of its rows"),
    ],
)
def test_impossible_shares_are_refused_with_their_numbers(plan: Plan, words: str) -> None:
    sources = {"a": rows("a", *[1] * 40), "b": rows("b", *[1] * 50), "none": []}
    with pytest.raises(DataError, match=re.escape(words)):
        mixed(plan, {source: sources[source] for source, _ in plan.shares})


@pytest.mark.parametrize(
    ("data", "path", "words"),
    [
        ({"mix": [{"source": "a", "share": 0.7}, {"source": "b", "share": 0.2}]}, "data.mix", "0.7 + 0.2 = 0.9, not 1"),
        ({"mix": [{"source": "a", "share": 0.5}, {"source": "a", "share": 0.5}]}, "data.mix", "named twice"),
        ({"mix_by": "tokens"}, "data.mix_by", "no effect without mix"),
        ({"mix_total": 10}, "data.mix_total", "no effect without mix"),
    ],
)  # fmt: skip
def test_what_a_mix_cannot_be_is_said_when_the_recipe_is_read(data, path: str, words: str) -> None:
    found = problems(data={"train": "t.jsonl", **data})
    assert words in str(found[path])


def test_a_tenth_three_times_and_seven_tenths_are_one() -> None:
    mix = [
        {"source": name, "share": share} for name, share in (("a", 0.1), ("b", 0.1), ("c", 0.1), ("d", 0.7))
    ]
    assert not problems(data={"train": "t.jsonl", "mix": mix})
