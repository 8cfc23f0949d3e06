"""From a Report to what the template shows: tables of text, and figures with the table of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from potstill.report.bars import Spot, intervals
from potstill.report.metrics import ROLES, by_key
from potstill.report.model import Curve, Report
from potstill.report.numbers import (
    NOT_MEASURED,
    Measured,
    duration,
    number,
    pair,
    percent,
    read,
    short,
    size,
    whole,
)
from potstill.report.svg import line_chart

WIDE, NARROW = 800, 340  # px; one drawing for each, so that letters stay readable on a phone
MOST_ROWS = 120
STYLES = {"after": 0, "teacher": 1, "before": 2, "control": 3}


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of a row names it. `note` stands below."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart in two widths and the table of its values."""

    caption: str
    wide: Markup
    narrow: Markup
    table: Table


def figure(ident: str, caption: str, draw: Callable[[str, int], Markup], table: Table) -> Figure:
    """A chart drawn at both widths, with distinct ids."""
    return Figure(caption, draw(f"{ident}-wide", WIDE), draw(f"{ident}-narrow", NARROW), table)


def shown(measured: Measured, as_percent: bool = False) -> str:
    """A measured value on one line, or why there is none."""
    value, span = pair(measured, as_percent)
    return f"{value} ({span})" if span else value or measured.reason


def curves(report: Report) -> list[Figure]:
    """One line chart for each stage and unit; none for a group without a finite value."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in report.curves:
        groups.setdefault((curve.stage, curve.unit), []).append(curve)
    drawn = (_line_figure(f"curve-{i}", *key, group) for i, (key, group) in enumerate(groups.items()))
    return [figure for figure in drawn if figure]


def _line_figure(ident: str, stage: str, unit: str, group: Sequence[Curve]) -> Figure | None:
    caption = f"Stage {stage}: {' and '.join(curve.name for curve in group)}"
    wide, narrow = (
        line_chart(f"{ident}-{name}", caption, group, width)
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    )
    if wide is None or narrow is None:
        return None
    return Figure(caption, wide, narrow, _curve_table(stage, unit, group))


def _curve_table(stage: str, unit: str, group: Sequence[Curve]) -> Table:
    by_name = {curve.name: dict(curve.points) for curve in group}
    steps = sorted({step for points in by_name.values() for step in points})
    rare = {step for curve in group if curve.dots for step, _ in curve.points}
    every = math.ceil(len(steps) / MOST_ROWS)
    kept = [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1 or s in rare][
        : 4 * MOST_ROWS
    ]
    rows = tuple(
        (whole(step), *(number(points[step]) if step in points else "" for points in by_name.values()))
        for step in kept
    )
    note = f"{len(kept)} of {len(steps)} steps; all are in metrics.jsonl." if len(kept) < len(steps) else ""
    return Table(f"Values of stage {stage}, {unit}", ("Step", *by_name), rows, note)


def distances(report: Report) -> list[Figure]:
    """The students' KL to the teacher and top-1 agreement, with intervals."""
    figures = []
    for result in report.results:
        if result.metric.key not in ("forward_kl", "agreement"):
            continue
        spots = [
            Spot(ROLES[model.role], cell, STYLES[model.role])
            for model, cell in zip(report.models, result.cells, strict=True)
            if model.role != "teacher"
        ]
        if any(spot.measured.value is not None for spot in spots):
            figures.append(_interval_figure(result.metric.key, spots))
    return figures


def by_stage(report: Report) -> Table | None:
    """Every measured quantity before and after each training stage, where there is more than one."""
    if not report.by_stage:
        return None
    rows = [
        (
            stage["stage"],
            result.metric.label,
            *(
                shown(read(stage[side], result.metric.key), result.metric.percent)
                for side in ("before", "after")
            ),
        )
        for stage in report.by_stage
        for result in report.results
    ]
    note = "On the same held-out prompts, with 95 % intervals."
    return Table("Stage by stage", ("Stage", "Metric", "Before it", "After it"), tuple(rows), note)


def _interval_figure(key: str, spots: Sequence[Spot]) -> Figure:
    metric = by_key(key)
    caption = f"{metric.label} on held-out prompts" + (f" ({metric.direction})" if metric.direction else "")
    rows = tuple((spot.label, *(pair(spot.measured, metric.percent)), _n(spot.measured)) for spot in spots)
    table = Table(f"Values: {metric.label}", ("Model", "Value", "95 % interval", "n"), rows)
    return figure(
        f"metric-{key}",
        caption,
        lambda ident, width: intervals(ident, caption, metric.unit, spots, width, metric.percent),
        table,
    )


def _n(measured: Measured) -> str:
    return "" if measured.n is None else whole(measured.n)


def retention(report: Report) -> Table | None:
    """How much of each score arrived."""
    if not report.retention:
        return None
    rows = []
    for row in report.retention:
        scores = (shown(score, row.metric.percent) for score in (row.teacher, row.student, row.control))
        rows.append((row.metric.label, *scores, _share(row.ratio)))
    head = ("Metric", "Teacher", "Distilled student", "Control student", "Student / teacher (95 %)")
    return Table("Retention: what share of the teacher's score arrived", head, tuple(rows))


def _share(ratio: Measured) -> str:
    if ratio.value is None:
        return f"refused: {ratio.reason}"
    ends = ratio.interval
    return percent(ratio.value) + (
        f" ({percent(ends[0])} to {percent(ends[1])})" if ends else " (no interval)"
    )


def training(report: Report) -> Table | None:
    """The training's own figures; None when there is nothing to say about any."""
    if all(found.reason == NOT_MEASURED for found in report.train.values()):
        return None
    show: dict[str, tuple[str, Callable[[float], str]]] = {
        "steps": ("Optimizer steps", whole),
        "tokens": ("Scored tokens", whole),
        "tokens_per_second": ("Tokens per second", whole),
        "seconds": ("Time", duration),
        "peak_rss_bytes": ("Peak memory", size),
    }
    rows = []
    for key, (label, write) in show.items():
        found = report.train[key]
        rows.append((label, found.reason if found.value is None else write(found.value)))
    return Table("What training took", ("Quantity", "Value"), tuple(rows))


def highlights(report: Report) -> list[tuple[str, str, str]]:
    """The figures to see first: (name, value, remark)."""
    found = []
    columns = {model.role: index for index, model in enumerate(report.models)}
    for result in report.results:
        if result.metric.key in ("forward_kl", "agreement"):
            before, after = (result.cells[columns[role]] for role in ("before", "after"))
            value, span = pair(after, result.metric.percent)
            was = pair(before, result.metric.percent)[0]
            if value:
                remark = f"{f'before: {was}; ' if was else ''}95 % interval {span or 'not measured'}"
                found.append((result.metric.label, value, remark))
    teacher, student = report.models[columns["teacher"]], report.models[columns["after"]]
    if student.params:
        share = f"{percent(student.params / teacher.params)} of the teacher" if teacher.params else ""
        found.append(("Student's parameters", short(student.params), share))
    seconds, speed = report.train["seconds"].value, report.train["tokens_per_second"].value
    if seconds is not None:
        remark = f"{whole(speed)} tokens per second" if speed is not None else ""
        found.append(("Training time", duration(seconds), remark))
    return found
