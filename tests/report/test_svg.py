"""Charts: no spike is lost, nothing leaves the drawing, and each can be read without colour or sight."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from potstill.report import bars, svg
from potstill.report.model import Curve, Histogram, binned
from potstill.report.numbers import Measured
from report import made_up
from report.pages import Page


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=400), st.integers(8, 60))
def test_thinning_keeps_the_extremes_and_the_limit(values: list[float], most: int) -> None:
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = svg.thin(points, most)
    assert len(kept) <= most + 1
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert {min(values), max(values)} <= {v for _, v in kept}


def test_thinning_keeps_a_value_that_is_not_finite_as_a_gap() -> None:
    points = [(float(i), math.nan if i == 5000 else 1.0) for i in range(10_000)]
    assert any(math.isnan(v) for _, v in svg.thin(points))


def test_a_loss_that_was_not_finite_breaks_the_line() -> None:
    points = ((1.0, 2.0), (2.0, math.nan), (3.0, 1.0), (4.0, 0.5))
    drawn = svg.line_chart("c", "t", [Curve("distill", "training", "nats", points)], 720)
    assert drawn is not None
    path = next(e for e in Page(drawn).all("path") if "line" in e.attributes["class"])
    assert path.attributes["d"].count("M") == 2
    assert "nan" not in drawn


def test_no_chart_without_a_finite_value() -> None:
    assert svg.line_chart("c", "t", [Curve("distill", "training", "nats", ((1.0, math.inf),))], 720) is None


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_stay_inside(wanted: list[float]) -> None:
    placed = sorted(svg.spread(wanted, 16, 0, 200))
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(placed))
    assert placed[0] >= -1e-6
    assert placed[-1] <= 200 + 1e-6


@pytest.mark.parametrize("width", [340, 800])
@pytest.mark.parametrize("spike", [0.0, 1e5])
def test_all_of_a_line_chart_lies_inside_it(width: int, spike: float) -> None:
    noise = random.Random(1)
    points = tuple((float(s), 0.05 + noise.random() + (spike if s == 30 else 0)) for s in range(1, 2000))
    curves = [
        Curve("d", name, "nats", points, dots=name == "b", resumes=(300,)) for name in ("a", "b", "c", "d")
    ]
    drawn = svg.line_chart("c", "t", curves, width)
    assert drawn is not None
    height = int(re.search(r'viewBox="0 0 \d+ (\d+)"', drawn)[1])  # type: ignore[index]
    for path in (e.attributes["d"] for e in Page(drawn).all("path") if "line" in e.attributes["class"]):
        pairs = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)
        assert all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in pairs)


def test_curves_differ_without_colour_and_are_named_where_they_end() -> None:
    drawn = svg.line_chart("c", "t", made_up.curves()[:2], 800)
    assert drawn is not None
    page = Page(drawn)
    lines = {e.attributes["class"] for e in page.all("path") if "line" in e.attributes["class"]}
    assert len(lines) == 2
    assert {e.name for e in page.elements if "mark" in e.attributes.get("class", "")} == {"circle", "rect"}
    names = [e.text for e in page.all("text") if "name" in e.attributes["class"]]
    assert [name.split()[0] for name in names] == ["training", "validation"]
    assert sum("resume" in e.attributes.get("class", "") for e in page.all("line")) == 1


def test_description_says_in_words_what_the_curve_does() -> None:
    text = svg.describe([Curve("d", "training", "nats", ((1.0, 3.0), (2.0, 0.25), (3.0, 0.5)))])
    assert text == "training: 3.00 at step 1, 0.50 at step 3, lowest 0.25 at step 2."


def test_names_in_a_chart_are_escaped_and_their_controls_shown() -> None:
    row = bars.Bar("<b>\u202ex", 1.0, "1")
    drawn = bars.bars("c", "<i>", [row], 800)
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert "⟨U+202E⟩" in drawn


def test_an_unknown_value_has_no_mark_but_its_reason() -> None:
    spots = [
        bars.Spot("one", Measured(0.4, 0.3, 0.5), 0),
        bars.Spot("two", Measured(None, reason="no logits"), 2),
    ]
    page = Page(bars.intervals("c", "t", "nats", spots, 800))
    assert sum("mark" in e.attributes.get("class", "") for e in page.elements) == 1
    assert "no logits" in [e.text for e in page.all("text")]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300))
def test_binning_counts_every_row_once(values: list[int]) -> None:
    data = binned("t", "tokens", {"one": values, "two": []})
    assert [sum(counts) for _, counts in data.series] == [len(values), 0]
    assert data.open_ended or max(values) <= data.edges[-1]


def test_one_enormous_row_squeezes_no_other() -> None:
    data = binned("t", "tokens", {"train": [*range(100, 300), 5_000_000]})
    assert data.edges[-1] < 1000
    assert data.open_ended


def test_histogram_bars_are_shares_of_their_own_series() -> None:
    data = Histogram("t", "tokens", (0.0, 10.0, 20.0), (("many", (300, 100)), ("few", (3, 1))))
    page = Page(bars.histogram("c", data, 800))
    heights = [e.attributes["height"] for e in page.all("rect")]
    assert heights[:2] == heights[2:]
