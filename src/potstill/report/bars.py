"""Static SVG of amounts: labelled bars, values with their intervals, stacked histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from potstill.report.numbers import pair, percent, ticks, whole
from potstill.report.svg import WIDTH, Scale, heading, marker, picture, tag, tick, tick_names
from potstill.types import Figure

Bar = tuple[str, float, str]  # label, amount, the amount as it is written


def bars(title: str, rows: Sequence[Bar]) -> Markup:
    """Horizontal bars from 0, each under its label and beside its amount."""
    length = Scale(0, max((amount for _, amount, _ in rows), default=0) or 1, 0, WIDTH)
    parts: list[Markup] = []
    for index, (label, amount, text) in enumerate(rows):
        place = {"x": 0, "y": 40 * index + 21, "height": 8, "rx": 2}
        parts += heading(label, text, 40 * index + 14)
        parts.append(tag("rect", **place, width=WIDTH, class_="track"))
        parts.append(tag("rect", **place, width=length(amount), class_="bar"))
    return picture(title, "; ".join(f"{label}: {text}" for label, _, text in rows), 40 * len(rows), *parts)


def intervals(title: str, rows: Sequence[tuple[str, Figure, int]]) -> Markup:
    """Values as marks with their 95 % intervals as lines, on one axis from 0.

    `rows`: label, figure and style of each; all figures measure the same.
    """
    unit = rows[0][1].unit
    share = unit == "share"
    ends = [end for _, figure, _ in rows for end in (*(figure.interval or ()), figure.value or 0.0)]
    axis = (0.0, 0.25, 0.5, 0.75, 1.0) if share else ticks(min(0.0, *ends), max(ends), 4)
    names = [percent(v) for v in axis] if share else tick_names(axis)
    x, bottom = Scale(axis[0], axis[-1], 8, WIDTH - 8), 40 * len(rows) + 6
    parts = [tag("line", x1=x(v), x2=x(v), y1=4, y2=bottom, class_="grid") for v in axis]
    parts += [tick(name, x(v), bottom + 16) for v, name in zip(axis, names, strict=True)]
    for index, (label, figure, style) in enumerate(rows):
        value, span = pair(figure)
        y = 40.0 * index + 28
        parts += heading(label, f"{value}{span and f' ({span})'}" or figure.reason, y - 12)
        if figure.interval:
            low, high = map(x, figure.interval)
            parts.append(tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker s{style % 4}"))
        if figure.value is not None:
            parts.append(marker(x(figure.value), y, style))
    if unit and not share:
        parts.append(tag("text", unit, x=WIDTH / 2, y=bottom + 34, class_="unit mid"))
    summary = "; ".join(f"{label}: {pair(figure)[0] or 'unknown'}" for label, figure, _ in rows)
    return picture(title, summary, bottom + (22 if share else 40), *parts)


class Bins:
    """Counts of several series of values >= 0 over common bins, up to their common 99th percentile.

    One giant row squeezes no other: the last bin holds all above it too, and `open_ended` says so.
    """

    def __init__(self, series: Mapping[str, Sequence[float]], about: int = 24) -> None:
        every = [value for values in series.values() for value in values] or [0.0]
        self.edges = ticks(0.0, max(1.0, np.percentile(every, 99, method="inverted_cdf")), about)
        self.open_ended = max(every) > self.edges[-1]
        self.counts = {
            name: np.histogram(np.minimum(values, self.edges[-1]), self.edges)[0].tolist()
            for name, values in series.items()
        }

    def names(self) -> list[str]:
        """Each bin in words."""
        names = [f"{whole(a)} to {whole(b)}" for a, b in zip(self.edges[:-1], self.edges[1:], strict=True)]
        return [*names[:-1], f"{whole(self.edges[-2])} or more"] if self.open_ended else names


def shares(counts: Sequence[int]) -> list[float]:
    """Each bin's share of the whole; all 0 when nothing was counted."""
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def histogram(title: str, unit: str, bins: Bins) -> Markup:
    """One row of bars a series; heights are shares of each series."""
    tall, step, edges = 52.0, 84.0, bins.edges
    x = Scale(edges[0], edges[-1], 0, WIDTH)
    peak = max((share for counts in bins.counts.values() for share in shares(counts)), default=0) or 1.0
    parts: list[Markup] = []
    sentences = []
    for index, (name, counts) in enumerate(bins.counts.items()):
        base = index * step + 22 + tall
        parts += heading(name, f"{whole(sum(counts))} rows", base - tall - 8)
        parts.append(tag("line", x1=0, x2=WIDTH, y1=base, y2=base, class_="axis"))
        for low, high, share in zip(edges[:-1], edges[1:], shares(counts), strict=True):
            if share:
                place = {"x": x(low) + 0.5, "width": max(0.5, x(high) - x(low) - 1)}
                height = tall * share / peak
                parts.append(tag("rect", **place, y=base - height, height=height, class_="bar"))
        if sum(counts):
            sentences.append(f"{name}: most rows have {bins.names()[counts.index(max(counts))]} {unit}.")
    bottom = len(bins.counts) * step - 4
    parts += [tick(whole(v), x(v), bottom + 12) for v in ticks(edges[0], edges[-1], 4) if v <= edges[-1]]
    below = unit + (f" (last bar: {whole(edges[-2])} or more)" if bins.open_ended else "")
    parts.append(tag("text", below, x=WIDTH / 2, y=bottom + 32, class_="unit mid"))
    return picture(title, " ".join(sentences), bottom + 38, *parts)
