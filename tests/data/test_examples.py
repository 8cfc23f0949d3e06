"""Rows that are too long or have nothing to learn, and the messages about them."""

from __future__ import annotations

import logging

import pytest

from builders.chats import bytes_tokenizer, chat
from builders.tiny import tiny_tokenizer
from potstill.data.examples import encode, length_for, lost
from potstill.data.rows import Row
from potstill.data.template import Templater
from potstill.errors import DataError

TINY = Templater(tiny_tokenizer())


def row(name: str, prompt: int, answer: int) -> Row:
    """A row of `prompt` + `answer` words; three tokens more with start, header and end."""
    return Row(name, chat(" ".join(["w10"] * prompt), " ".join(["w20"] * answer)), source=f"a.jsonl:{name}")


def test_no_target_in_any_row_stops_with_the_cause() -> None:
    rows = [row(str(i), 40, 3) for i in range(64)]
    with pytest.raises(DataError) as caught:
        encode(rows, TINY, max_length=32)
    assert "64 of 64 rows have no target" in str(caught.value)
    assert "longer than max_length 32" in str(caught.value)
    assert "100% fit 46" in caught.value.fix
    assert caught.value.exit_code == 2


def test_a_long_answer_never_pushes_out_its_prompt(caplog: pytest.LogCaptureFixture) -> None:
    encoded = encode([row("1", 6, 30), row("2", 2, 2)], TINY, max_length=8)
    with caplog.at_level(logging.WARNING):
        lost([encoded], 8).refuse_many("skip")
    assert [example.id for example in encoded.examples] == ["2"]
    assert encoded.funnel["too_long"] == 1
    assert "1 of 2 rows (50%) are left out: 1 longer than max_length 8" in caplog.text
    assert "100% fit 39" in caplog.text


def test_a_prompt_alone_longer_than_the_limit_is_dropped() -> None:
    assert encode([row("1", 20, 1), row("2", 1, 1)], TINY, max_length=8).funnel["too_long"] == 1


def test_lengths_cover_dropped_rows_and_say_what_would_fit() -> None:
    encoded = encode([row(str(n), n, 1) for n in range(1, 101)], TINY, max_length=54)
    assert encoded.lengths == tuple(range(5, 105))
    assert len(encoded.examples) == length_for(encoded.lengths, 0.5) - 4 == 50


def test_length_for_is_the_smallest_that_fits() -> None:
    assert [length_for([4, 1, 3, 2], share) for share in (0.01, 0.25, 0.26, 0.75, 1.0)] == [1, 1, 2, 3, 4]


def test_no_limit_keeps_every_row() -> None:
    assert len(encode([row("1", 300, 1)], TINY, max_length=None).examples) == 1


def test_a_row_with_one_token_scores_nothing_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    rows = [Row("a", text=""), Row("b", text="w10 w20")]
    with caplog.at_level(logging.WARNING):
        encoded = encode(rows, Templater(tokenizer), max_length=None)
        lost([encoded], None).refuse_many("skip")
    assert (encoded.funnel["no_target"], encoded.funnel["examples"]) == (1, 1)
    assert "1 without a token to score" in caplog.text
    with pytest.raises(DataError, match="1 of 1 rows have no target: no row has a token to score"):
        encode(rows[:1], Templater(tokenizer), max_length=None)


def test_prompt_only_rows_stop_training_on_data_and_can_be_skipped() -> None:
    rows = [row("1", 1, 1), Row("p", chat("w10"), source="a.jsonl:2")]
    with pytest.raises(DataError, match=r"a\.jsonl:2: it needs an assistant turn"):
        encode(rows, TINY, max_length=None)
    assert encode(rows, TINY, max_length=None, on_bad_row="skip").funnel["broken"] == 1
    with pytest.raises(DataError, match=r"1 of 1 rows have no target.*needs an assistant turn"):
        encode(rows[1:], TINY, max_length=None, on_bad_row="skip")


def test_a_mix_of_rows_with_and_without_reasoning_is_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    thought = {"role": "assistant", "content": "4", "reasoning_content": "2+2"}
    rows = [Row("a", (*chat("q"), thought)), Row("b", chat("q", "4"))]
    templater = Templater(bytes_tokenizer())
    with caplog.at_level(logging.WARNING):
        assert encode(rows, templater, max_length=None).funnel["reasoning"] == 1
        assert "1 of 2 rows hold reasoning" in caplog.text
        caplog.clear()
        encode(rows[:1], templater, max_length=None)
    assert not caplog.text


def test_a_row_of_five_megabytes_is_dropped_by_the_length_rule() -> None:
    rows = [*(row(str(i), 2, 2) for i in range(50)), row("giant", 2, 1_250_000)]
    encoded = encode(rows, TINY, max_length=64)
    assert (encoded.funnel["too_long"], encoded.funnel["examples"]) == (1, 50)
