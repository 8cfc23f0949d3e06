"""Numbers are written so that value and interval can be compared, and nothing absent looks measured."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.report import numbers
from potstill.report.figures import read
from potstill.report.numbers import pair
from potstill.types import Figure


def test_null_value_carries_the_reason_beside_it() -> None:
    figure = read({}, {"ppl": None, "ppl_reason": "an API gives no likelihood"}, "ppl")
    assert figure == Figure("ppl", reason="an API gives no likelihood", label="ppl")


def test_missing_key_and_missing_block_say_not_measured() -> None:
    assert read({}, {}, "ppl").reason == read({}, None, "ppl").reason == "not measured"


def test_bare_number_has_no_interval() -> None:
    assert read({}, {"ppl": 4}, "ppl").interval is None


def test_a_figure_is_read_with_its_description() -> None:
    about = {"label": "Perplexity", "unit": "", "better": "down", "meaning": "exp", "place": "result"}
    figure = read(
        {"figures": {"ppl": about}}, {"ppl": {"value": 4.4, "low": 4.2, "high": 4.6, "n": 60}}, "ppl"
    )
    assert figure == Figure("ppl", 4.4, 4.2, 4.6, 60, label="Perplexity", better="down", meaning="exp")


@given(st.floats(1e-3, 1e6), st.floats(1e-4, 1.0))
def test_both_ends_of_an_interval_differ_in_print_when_they_differ_by_a_tenth_of_a_percent(
    value: float, share: float
) -> None:
    half = max(value * share, 0.001)
    _, span = pair(Figure("ppl", value, value - half, value + half))
    low, high = span.split(" to ")
    assert low != high


@given(st.floats(1e-4, 1e9))
def test_a_printed_number_reads_back_within_one_percent(value: float) -> None:
    assert float(numbers.number(value).replace(",", "")) == pytest.approx(value, rel=0.051)


def test_units_change_at_their_border() -> None:
    assert numbers.size(999_999_999) == "1 GB"
    assert numbers.size(12) == "12 B"
    assert numbers.short(134_515_008) == "135 M"
    assert numbers.duration(59.99) == "1 min 0 s"
    assert numbers.duration(3599.6) == "1 h 0 min"


def test_zero_has_no_sign() -> None:
    assert numbers.number(-0.0) == "0.00"
    assert numbers.number(-0.001, 1) == "0.0"


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(1, 12))
def test_ticks_cover_their_range_evenly(low: float, width: float, about: int) -> None:
    values = numbers.ticks(low, low + width, about)
    assert values[0] <= low + 1e-6 * width
    assert values[-1] >= low + width - 1e-6 * width
    steps = {round((b - a) / (values[-1] - values[0]), 6) for a, b in pairwise(values)}
    assert len(steps) == 1
    assert len(values) <= 2 * about + 4
