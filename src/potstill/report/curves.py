"""Static SVG of curves over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.numbers import number, ticks, whole
from potstill.report.svg import LETTER, WIDTH, Scale, fit, marker, picture, tag, tick_names

Point = tuple[float, float]
MOST_POINTS = 500  # a line shows no more
UNIT = "nats per token"
TOP, BOTTOM, HEIGHT = 38.0, 226.0, 270.0


@dataclass(frozen=True)
class Curve:
    """One line of a stage's chart: (step, value). `dots` for values measured now and then."""

    stage: str
    name: str  # "training", "validation"
    points: tuple[Point, ...]
    dots: bool = False
    resumes: tuple[float, ...] = ()  # steps at which training went on after an interruption
    unit: str = UNIT
    chart: str = ""  # of several charts of a stage, the one that it is in


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
    result: list[Point] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        finite = _finite(part)
        if len(finite) < len(part):
            result.append(next(point for point in part if not math.isfinite(point[1])))
        if finite:
            result.extend({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
    return sorted(result)


def spread(targets: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions near `targets`, at least `gap` apart, within [low, high] where they fit."""
    order = sorted(range(len(targets)), key=lambda i: targets[i])
    positions = list(targets)
    floor = low
    for i in order:
        positions[i] = floor = max(positions[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        positions[i] = ceiling = min(positions[i], ceiling)
        ceiling -= gap
    return positions


def describe(curves: Sequence[Curve]) -> str:
    """What a line chart shows, in words, for who cannot see it."""
    sentences = []
    for curve in curves:
        if finite := _finite(curve.points):
            (first, start), (last, end), lowest = finite[0], finite[-1], min(finite, key=lambda p: p[1])
            sentences.append(
                f"{curve.name}: {number(start)} at step {whole(first)}, {number(end)} at step {whole(last)}, "
                f"lowest {number(lowest[1])} at step {whole(lowest[0])}."
            )
    return " ".join(sentences)


def line_chart(title: str, curves: Sequence[Curve]) -> Markup | None:
    """Curves over steps with their resumes; None when no value is finite. Logarithmic over wide ranges."""
    drawn = [(curve, finite) for curve in curves if (finite := _finite(curve.points))]
    if not drawn:
        return None
    steps, values = ([point[axis] for _, finite in drawn for point in finite] for axis in (0, 1))
    log = min(values) > 0 and max(values) / min(values) > 40
    rows = log_ticks(min(values), max(values)) if log else ticks(min(0.0, *values), max(values), 5)
    names = tick_names(rows, log)
    labels = [(fit(curve.name.partition(" (")[0], 110), number(finite[-1][1])) for curve, finite in drawn]
    left = 10 + LETTER * max(map(len, names))
    right = WIDTH - 14 - LETTER * max(len(line) for label in labels for line in label)
    x, y = Scale(min(steps), max(steps), left, right), Scale(rows[0], rows[-1], BOTTOM, TOP, log)
    parts = [tag("text", f"{curves[0].unit}{', logarithmic' if log else ''}", x=0, y=13, class_="unit")]
    for row, name in zip(rows, names, strict=True):
        parts.append(tag("line", x1=left, x2=right, y1=y(row), y2=y(row), class_="grid"))
        parts.append(tag("text", name, x=left - 8, y=y(row) + 4, class_="tick end"))
    for mark in ticks(x.low, x.high, 6):
        if x.low <= mark <= x.high and mark == int(mark):
            parts.append(tag("text", whole(mark), x=x(mark), y=BOTTOM + 18, class_="tick mid"))
    parts.append(tag("text", "step", x=(left + right) / 2, y=BOTTOM + 36, class_="unit mid"))
    for step in sorted({step for curve, _ in drawn for step in curve.resumes if x.low <= step <= x.high}):
        parts.append(tag("line", x1=x(step), x2=x(step), y1=TOP - 16, y2=BOTTOM, class_="resume"))
        parts.append(tag("text", "resumed", x=x(step) + 4, y=TOP - 8, class_="tick"))
    heights = spread([y(finite[-1][1]) for _, finite in drawn], 30, TOP, BOTTOM - 12)
    for style, ((curve, finite), label, at) in enumerate(zip(drawn, labels, heights, strict=True)):
        parts += _line(curve, x, y, style)
        place = x(finite[-1][0]) + 9
        lines = (tag("tspan", line, x=place, dy=dy) for line, dy in zip(label, ("0", "1.1em"), strict=True))
        parts.append(tag("text", *lines, y=at, class_=f"name s{style % 4}"))
    return picture(title, describe(curves), HEIGHT, *parts)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point[1])]


def _line(curve: Curve, x: Scale, y: Scale, style: int) -> list[Markup]:
    """The line, broken where a value is not finite, and its marks."""
    pen, path = "M", ""
    for step, value in (points := thin(curve.points)):
        if math.isfinite(value):
            path += f"{pen}{x(step):.1f} {y(value):.1f}"
        pen = "L" if math.isfinite(value) else "M"
    finite = _finite(points)
    marked = finite if curve.dots and len(finite) <= 60 else finite[-1:]
    line = tag("path", d=path, class_=f"line s{style % 4}{'' if curve.dots else ' every'}")
    return [line, *(marker(x(step), y(value), style) for step, value in marked)]
