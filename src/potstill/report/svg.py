"""Static SVG, drawn here: primitives, scales and the line chart. Styles and colours live in the page's CSS.

Colour never carries meaning alone: lines differ in dash and marker, and each is labelled at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from potstill.report.model import Curve
from potstill.report.numbers import number, ticks, whole
from potstill.report.text import visible

Point = tuple[float, float]
LETTER = 6.6  # px; a wide guess of a 12 px letter's mean width, for margins
MOST_POINTS = 500  # a line on 700 px shows no more


def tag(name: str, *content: str, **attributes: object) -> Markup:
    """One element; `class_` and `stroke_width` style names are spelled for SVG, values are escaped."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(part if isinstance(part, Markup) else escape(visible(part)) for part in content)
    return Markup(f"<{name}{pairs}>{inner}</{name}>" if content else f"<{name}{pairs}/>")


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else visible(str(value))


def picture(ident: str, title: str, summary: str, width: int, height: float, *parts: Markup) -> Markup:
    """The outer element with its accessible name and description."""
    return tag(
        "svg",
        tag("title", title, id=f"{ident}-title"),
        tag("desc", summary, id=f"{ident}-desc"),
        *parts,
        role="img",
        class_="chart",
        viewBox=f"0 0 {width} {math.ceil(height)}",
        aria_labelledby=f"{ident}-title {ident}-desc",
    )


def marker(x: float, y: float, style: int) -> Markup:
    """A point's mark: filled circle, square, hollow circle, diamond by `style`."""
    kind = style % 4
    look = f"mark s{kind}"
    if kind in (0, 2):
        return tag("circle", cx=x, cy=y, r=4, class_=look)
    if kind == 1:
        return tag("rect", x=x - 3.6, y=y - 3.6, width=7.2, height=7.2, class_=look)
    return tag("path", d=f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5-5z", class_=look)


@dataclass(frozen=True)
class Scale:
    """From values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)


def tick_names(values: Sequence[float], log: bool = False) -> list[str]:
    """Axis labels with no more decimals than they need; on a linear axis all have the same."""
    places = [next((p for p in range(9) if math.isclose(round(v, p), v, abs_tol=1e-12)), 9) for v in values]
    most = max(places, default=0)
    return [number(v, own if log else most) for v, own in zip(values, places, strict=True)]


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten (only the powers when they are many) that cover [low, high]."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    nice = (1, 2, 5) if last - first <= 2 else (1,)
    values = [m * 10.0**k for k in range(first, last + 1) for m in nice]
    below = max((v for v in values if v <= low), default=values[0])
    above = min((v for v in values if v >= high), default=values[-1])
    return tuple(v for v in values if below <= v <= above)


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: of each stretch its lowest and highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretch = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = [point for point in part if math.isfinite(point[1])]
        if len(finite) < len(part):
            kept.append(next(point for point in part if not math.isfinite(point[1])))
        if finite:
            ends = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}
            kept.extend(ends)
    return sorted(kept)


def fit(label: str, room: float) -> str:
    """The label, ended by … where it would be wider than `room` pixels."""
    most = max(1, int(room / LETTER))
    return label if len(label) <= most else f"{label[: most - 1]}…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions near the wanted ones, at least `gap` apart, within [low, high] where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = list(wanted)
    floor = low
    for i in order:
        placed[i] = floor = max(placed[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed


def describe(curves: Sequence[Curve]) -> str:
    """What a line chart shows, in words, for who cannot see it."""
    sentences = []
    for curve in curves:
        finite = [point for point in curve.points if math.isfinite(point[1])]
        if finite:
            (first, start), (last, end) = finite[0], finite[-1]
            lowest = min(finite, key=lambda p: p[1])
            sentences.append(
                f"{curve.name}: {number(start)} at step {whole(first)}, {number(end)} at step {whole(last)}, "
                f"lowest {number(lowest[1])} at step {whole(lowest[0])}."
            )
    return " ".join(sentences)


def line_chart(ident: str, title: str, curves: Sequence[Curve], width: int) -> Markup | None:
    """Curves over steps with their resumes; None when no value is finite. Logarithmic over wide ranges."""
    drawn = [(curve, [p for p in curve.points if math.isfinite(p[1])]) for curve in curves]
    drawn = [(curve, finite) for curve, finite in drawn if finite]
    if not drawn:
        return None
    values = [y for _, finite in drawn for _, y in finite]
    steps = [x for _, finite in drawn for x, _ in finite]
    log = min(values) > 0 and max(values) / min(values) > 40
    rows = log_ticks(min(values), max(values)) if log else ticks(min(0.0, *values), max(values), 5)
    labels = [f"{fit(curve.name, 110)} {number(finite[-1][1])}" for curve, finite in drawn]
    names = tick_names(rows, log)
    left = 10 + LETTER * max(map(len, names))
    right = width - 16 - min(LETTER * max(map(len, labels)), 0.32 * width)
    top, bottom, height = 34.0, 266.0, 310.0
    x = Scale(min(steps), max(steps), left, right)
    y = Scale(rows[0], rows[-1], bottom, top, log)
    unit = fit(drawn[0][0].unit, 0.6 * width) + (", logarithmic" if log else "")
    parts = [tag("text", unit, x=0, y=13, class_="unit"), *_grid(rows, names, y, left, right)]
    parts += _step_axis(x, bottom, width)
    parts += _resumes(drawn, x, top, bottom)
    heights = spread([y(finite[-1][1]) for _, finite in drawn], 16, top, bottom)
    for style, ((curve, finite), label, at) in enumerate(zip(drawn, labels, heights, strict=True)):
        parts += _curve(curve, x, y, style)
        parts.append(_end_label(label, x(finite[-1][0]) + 9, at + 4, style, width))
    return picture(ident, title, describe(curves), width, height, *parts)


def _end_label(label: str, x: float, y: float, style: int, width: int) -> Markup:
    """The curve's name and last value on one line, or on two where the margin is narrow."""
    look = f"name s{style % 4}"
    if x + LETTER * len(label) <= width:
        return tag("text", label, x=x, y=y, class_=look)
    name, value = label.rsplit(" ", 1)
    lines = (tag("tspan", name, x=x, dy="-0.4em"), tag("tspan", value, x=x, dy="1.1em"))
    return tag("text", *lines, x=x, y=y, class_=look)


def _grid(rows: Sequence[float], names: Sequence[str], y: Scale, left: float, right: float) -> list[Markup]:
    parts = []
    for row, name in zip(rows, names, strict=True):
        parts.append(tag("line", x1=left, x2=right, y1=y(row), y2=y(row), class_="grid"))
        parts.append(tag("text", name, x=left - 8, y=y(row) + 4, class_="tick end"))
    return parts


def _step_axis(x: Scale, bottom: float, width: int) -> list[Markup]:
    marks = [v for v in ticks(x.low, x.high, width // 110) if x.low <= v <= x.high and v == int(v)]
    parts = [tag("text", whole(v), x=x(v), y=bottom + 18, class_="tick mid") for v in marks]
    return [*parts, tag("text", "step", x=(x.start + x.end) / 2, y=bottom + 36, class_="unit mid")]


def _resumes(drawn: Sequence[tuple[Curve, list[Point]]], x: Scale, top: float, bottom: float) -> list[Markup]:
    parts = []
    for step in sorted({step for curve, _ in drawn for step in curve.resumes if x.low <= step <= x.high}):
        parts.append(tag("line", x1=x(step), x2=x(step), y1=top - 16, y2=bottom, class_="resume"))
        parts.append(tag("text", "resumed", x=x(step) + 4, y=top - 7, class_="tick"))
    return parts


def _curve(curve: Curve, x: Scale, y: Scale, style: int) -> list[Markup]:
    """The line, broken where a value is not finite, and its marks."""
    points = thin(curve.points)
    pen, path = "M", ""
    for step, value in points:
        if not math.isfinite(value):
            pen = "M"
            continue
        path += f"{pen}{x(step):.1f} {y(value):.1f}"
        pen = "L"
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    marked = finite if curve.dots and len(finite) <= 60 else finite[-1:]
    line = tag("path", d=path, class_=f"line s{style % 4}{'' if curve.dots else ' every'}")
    return [line, *(marker(x(step), y(value), style) for step, value in marked)]
