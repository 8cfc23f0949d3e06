"""Loops and refusals: what counts as one, and what only looks like one."""

from __future__ import annotations

import pytest

from potstill.data.habits import LOOP_WORDS, loops, refuses


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but as an AI language model I can't help with that.",
        " I\u2019m really sorry, I won\u2019t do this.",
        "I am unable to say.",
        "As an AI, I don't have opinions.",
        "I cannot assist with that.",
        "Sorry, but I can't help with that.",
        "I apologize, but I cannot provide this.",
        "Unfortunately, I am unable to answer.",
    ],
)
def test_an_answer_that_begins_by_refusing_is_a_refusal(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "The line \"I'm sorry, but I can't help with that\" is how such models refuse.",
        "She said: as an AI I would know. Then she laughed.",
        "I'm sorry to hear that. Here is what helps.",
        "I cannot recommend this book enough.",
        "Sorry to hear that. Here is what helps.",
        "Unfortunately, the shop is closed on Sundays.",
        "",
    ],
)
def test_words_of_a_refusal_inside_an_answer_are_none(answer: str) -> None:
    assert not refuses(answer)


def test_a_long_answer_of_repeated_words_is_a_loop() -> None:
    assert loops("To " * LOOP_WORDS)
    assert loops("one two three four five six seven " * 9)
    assert loops(" ".join(map(str, range(20))) + " ha" * 40)


@pytest.mark.parametrize(
    "answer",
    [
        "To " * (LOOP_WORDS - 1),
        " ".join(map(str, range(100))),
        "la la la, sang the choir, and the show went on",
        " ".join(f"verse {n} has its own words and then la la la la" for n in range(8)),
    ],
)
def test_short_answers_and_refrains_are_no_loops(answer: str) -> None:
    assert not loops(answer)
