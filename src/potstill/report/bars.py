"""Static SVG of amounts: labelled bars, values with their intervals, stacked histograms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from potstill.report.model import Histogram
from potstill.report.numbers import Measured, pair, percent, ticks, whole
from potstill.report.svg import LETTER, Scale, fit, marker, picture, tag, tick_names


class Bar(NamedTuple):
    """One labelled amount and how it is written."""

    label: str
    amount: float
    text: str


class Spot(NamedTuple):
    """One measured value; `style` picks its mark and colour."""

    label: str
    measured: Measured
    style: int


def bars(ident: str, title: str, rows: Sequence[Bar], width: int) -> Markup:
    """Horizontal bars from 0, each under its label and beside its amount."""
    length = Scale(0, max((row.amount for row in rows), default=0) or 1, 0, width)
    parts = []
    for index, row in enumerate(rows):
        top = 40 * index
        parts += _heading(row.label, row.text, top + 14, width)
        parts.append(tag("rect", x=0, y=top + 21, width=width, height=8, rx=2, class_="track"))
        parts.append(tag("rect", x=0, y=top + 21, width=length(row.amount), height=8, rx=2, class_="bar"))
    summary = "; ".join(f"{row.label}: {row.text}" for row in rows)
    return picture(ident, title, summary, width, 40 * len(rows), *parts)


def intervals(
    ident: str, title: str, unit: str, rows: Sequence[Spot], width: int, as_percent: bool = False
) -> Markup:
    """Values as marks with their 95 % intervals as bars, on one axis from 0."""
    ends = [end for row in rows for end in (*(row.measured.interval or ()), row.measured.value or 0.0)]
    axis = (0.0, 0.25, 0.5, 0.75, 1.0) if as_percent else ticks(min(0.0, *ends), max(ends), width // 120)
    x = Scale(axis[0], axis[-1], 8, width - 8)
    bottom = 40 * len(rows) + 6
    names = [percent(v) for v in axis] if as_percent else tick_names(axis)
    parts = [tag("line", x1=x(v), x2=x(v), y1=4, y2=bottom, class_="grid") for v in axis]
    parts += [_tick(name, x(v), bottom + 16, width) for v, name in zip(axis, names, strict=True)]
    parts.append(tag("text", unit, x=width / 2, y=bottom + 34, class_="unit mid"))
    for index, row in enumerate(rows):
        value, span = pair(row.measured, as_percent)
        said = f"{value}{span and f' ({span})'}" or row.measured.reason
        parts += _heading(row.label, said, 40 * index + 16, width)
        parts += _spot(row, x, 40.0 * index + 28)
    said_all = "; ".join(f"{row.label}: {pair(row.measured, as_percent)[0] or 'unknown'}" for row in rows)
    return picture(ident, title, said_all, width, bottom + (40 if unit else 22), *parts)


def _heading(label: str, value: str, y: float, width: int) -> list[Markup]:
    """A row's name at the left and its value at the right; the table beside a chart has both in full."""
    said = fit(value, 0.6 * width)
    name = fit(label, width - LETTER * (len(said) + 2))
    return [
        tag("text", name, x=0, y=y, class_="row halo"),
        tag("text", said, x=width, y=y, class_="row end strong halo"),
    ]


def _tick(name: str, x: float, y: float, width: int) -> Markup:
    """An axis label, kept inside the drawing at both ends."""
    if x < 16:
        return tag("text", name, x=0, y=y, class_="tick")
    if x > width - 16:
        return tag("text", name, x=width, y=y, class_="tick end")
    return tag("text", name, x=x, y=y, class_="tick mid")


def _spot(row: Spot, x: Scale, y: float) -> list[Markup]:
    if row.measured.value is None:
        return []
    ends, look = row.measured.interval, f"whisker s{row.style % 4}"
    whisker = [tag("line", x1=x(ends[0]), x2=x(ends[1]), y1=y, y2=y, class_=look)] if ends else []
    return [*whisker, marker(x(row.measured.value), y, row.style)]


def shares(counts: Sequence[int]) -> list[float]:
    """Each bin's share of the whole; all 0 when nothing was counted."""
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def histogram(ident: str, data: Histogram, width: int) -> Markup:
    """One row of bars a series over common bins; heights are shares of each series."""
    tall, step = 52.0, 84.0
    x = Scale(data.edges[0], data.edges[-1], 0, width)
    peak = max((share for _, counts in data.series for share in shares(counts)), default=0) or 1.0
    parts = []
    for index, (name, counts) in enumerate(data.series):
        base = index * step + 22 + tall
        parts += _heading(name, f"{whole(sum(counts))} rows", base - tall - 8, width)
        parts.append(tag("line", x1=0, x2=width, y1=base, y2=base, class_="axis"))
        for low, high, share in zip(data.edges[:-1], data.edges[1:], shares(counts), strict=True):
            if share:
                place = {"x": x(low) + 0.5, "width": max(0.5, x(high) - x(low) - 1)}
                height = tall * share / peak
                parts.append(tag("rect", **place, y=base - height, height=height, class_="bar"))
    bottom = len(data.series) * step - 4
    marks = ticks(data.edges[0], data.edges[-1], width // 110)
    parts += [_tick(whole(v), x(v), bottom + 12, width) for v in marks if v <= data.edges[-1]]
    unit = data.unit + (f" (last bar: {whole(data.edges[-2])} or more)" if data.open_ended else "")
    parts.append(tag("text", unit, x=width / 2, y=bottom + 32, class_="unit mid"))
    return picture(ident, data.title, _peaks(data), width, bottom + 38, *parts)


def _peaks(data: Histogram) -> str:
    sentences = []
    for name, counts in data.series:
        if sum(counts):
            at = max(range(len(counts)), key=counts.__getitem__)
            low, high = whole(data.edges[at]), whole(data.edges[at + 1])
            sentences.append(f"{name}: most rows between {low} and {high} {data.unit}.")
    return " ".join(sentences)
