"""Charts: no spike is lost, nothing leaves the drawing, and each can be read without colour or sight."""

from __future__ import annotations

import math
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import made_up
from builders.pages import Page
from potstill.report import bars, curves
from potstill.report.curves import Curve, line_chart
from potstill.report.svg import WIDTH
from potstill.types import Figure


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=400), st.integers(8, 60))
def test_thinning_keeps_the_extremes_and_the_limit(values: list[float], most: int) -> None:
    points = [(float(i), v) for i, v in enumerate(values)]
    kept = curves.thin(points, most)
    assert len(kept) <= most + 1
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert {min(values), max(values)} <= {v for _, v in kept}


def test_thinning_keeps_a_value_that_is_not_finite_as_a_gap() -> None:
    points = [(float(i), math.nan if i == 5000 else 1.0) for i in range(10_000)]
    assert any(math.isnan(v) for _, v in curves.thin(points))


def test_a_loss_that_was_not_finite_breaks_the_line() -> None:
    points = ((1.0, 2.0), (2.0, math.nan), (3.0, 1.0), (4.0, 0.5))
    drawn = line_chart("t", [Curve("distill", "training", points)])
    assert drawn is not None
    path = next(e for e in Page(drawn).all("path") if "line" in e.attributes["class"])
    assert path.attributes["d"].count("M") == 2
    assert "nan" not in drawn


def test_no_chart_without_a_finite_value() -> None:
    assert line_chart("t", [Curve("distill", "training", ((1.0, math.inf),))]) is None


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_stay_inside(targets: list[float]) -> None:
    positions = sorted(curves.spread(targets, 16, 0, 200))
    assert all(b - a >= 16 - 1e-6 for a, b in pairwise(positions))
    assert positions[0] >= -1e-6
    assert positions[-1] <= 200 + 1e-6


@pytest.mark.parametrize("spike", [0.0, 1e5])
def test_all_of_a_line_chart_lies_inside_it(spike: float) -> None:
    noise = random.Random(1)
    points = tuple((float(s), 0.05 + noise.random() + (spike if s == 30 else 0)) for s in range(1, 2000))
    lines = [Curve("d", name, points, dots=name == "b", resumes=(300,)) for name in ("a", "b", "c", "d")]
    drawn = line_chart("t", lines)
    assert drawn is not None
    height = int(re.search(r'viewBox="0 0 \d+ (\d+)"', drawn)[1])  # type: ignore[index]
    for path in (e.attributes["d"] for e in Page(drawn).all("path") if "line" in e.attributes["class"]):
        pairs = re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)
        assert all(0 <= float(x) <= WIDTH and 0 <= float(y) <= height for x, y in pairs)


def test_curves_differ_without_colour_and_are_named_where_they_end() -> None:
    drawn = line_chart("t", made_up.curves()[:2])
    assert drawn is not None
    page = Page(drawn)
    lines = {e.attributes["class"] for e in page.all("path") if "line" in e.attributes["class"]}
    assert len(lines) == 2
    assert {e.name for e in page.elements if "mark" in e.attributes.get("class", "")} == {"circle", "rect"}
    names = [e.text for e in page.all("text") if "name" in e.attributes["class"]]
    assert [name.rstrip("0123456789.") for name in names] == ["training", "validation"]
    assert sum("resume" in e.attributes.get("class", "") for e in page.all("line")) == 1


def test_description_says_in_words_what_the_curve_does() -> None:
    text = curves.describe([Curve("d", "training", ((1.0, 3.0), (2.0, 0.25), (3.0, 0.5)))])
    assert text == "training: 3.00 at step 1, 0.50 at step 3, lowest 0.25 at step 2."


def test_names_in_a_chart_are_escaped_and_their_controls_shown() -> None:
    drawn = bars.bars("<i>", [("<b>\u202ex", 1.0, "1")])
    assert "<b>" not in drawn
    assert "<i>" not in drawn
    assert "⟨U+202E⟩" in drawn


def test_an_unknown_value_has_no_mark_but_its_reason() -> None:
    spots = [
        ("one", Figure("ppl", 0.4, 0.3, 0.5, unit="nats"), 0),
        ("two", Figure("ppl", reason="no logits", unit="nats"), 2),
    ]
    page = Page(bars.intervals("t", spots))
    assert sum("mark" in e.attributes.get("class", "") for e in page.elements) == 1
    assert "no logits" in [e.text for e in page.all("text")]


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300))
def test_binning_counts_every_row_once(values: list[int]) -> None:
    bins = bars.Bins({"one": values, "two": []})
    assert [sum(counts) for counts in bins.counts.values()] == [len(values), 0]
    assert bins.open_ended == (max(values) > bins.edges[-1])
    assert sum(value <= bins.edges[-1] for value in values) >= 0.99 * len(values)
    assert [sum(low <= value < high for value in values) for low, high in pairwise(bins.edges)][:-1] == (
        bins.counts["one"][:-1]
    )


def test_one_enormous_row_squeezes_no_other() -> None:
    bins = bars.Bins({"train": [*range(100, 300), 5_000_000]})
    assert bins.edges[-1] < 1000
    assert bins.open_ended
    assert bins.names()[-1].endswith("or more")


def test_histogram_bars_are_shares_of_their_own_series() -> None:
    bins = bars.Bins({"many": [3] * 300 + [13] * 100, "few": [3] * 3 + [13]}, about=2)
    page = Page(bars.histogram("t", "tokens", bins))
    heights = [e.attributes["height"] for e in page.all("rect")]
    assert len(heights) == 4
    assert heights[:2] == heights[2:]
