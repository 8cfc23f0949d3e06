"""The tables and charts of the page about the training: how it went, and what it took."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from potstill.report.bars import bars
from potstill.report.content import Content
from potstill.report.curves import Curve, line_chart
from potstill.report.numbers import duration, number, size, whole
from potstill.report.tables import Chart, Row, Table

MOST_ROWS = 120
TRAINING: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "steps": ("Optimizer steps", whole),
    "tokens": ("Scored tokens", whole),
    "tokens_per_second": ("Tokens per second", whole),
    "seconds": ("Time", duration),
    "peak_rss_bytes": ("Peak memory", size),
}
ROLLOUTS: Mapping[str, str] = {
    "rollout_length": "Tokens of a rollout",
    "repetition": "Repeated 4-grams, share",
    "truncated": "Cut at the limit, share",
    "empty": "Empty, share",
    "student_entropy": "Student's entropy, nats",
    "teacher_entropy": "Teacher's entropy, nats",
    "overlap": "Teacher's 16 likeliest ids among the student's, share",
    "early_kl": "KL(student ‖ teacher), first half of answers, nats",
    "late_kl": "KL(student ‖ teacher), second half of answers, nats",
}


def training(content: Content) -> Table:
    """What making the student took, all its stages together."""
    rows, train = [], content.summary.get("train") or {}
    for key, (label, write) in TRAINING.items():
        if key in train:
            rows.append((label, train[f"{key}_reason"] if train[key] is None else write(train[key])))
    return Table("What training took", ("Quantity", "Value"), rows)


def curves(content: Content) -> list[Chart]:
    """One line chart for each stage; none for a stage without a finite value."""
    charts = []
    for stage in dict.fromkeys(curve.stage for curve in content.curves):
        group = [curve for curve in content.curves if curve.stage == stage]
        caption = f"Stage {stage}: {' and '.join(curve.name for curve in group)}"
        if (drawing := line_chart(caption, group)) is not None:
            charts.append(Chart(caption, drawing, _curve_table(stage, group)))
    return charts


def on_policy(content: Content) -> list[Chart]:
    """The charts of the student's own text in training, stage by stage."""
    charts = []
    for stage, title in dict.fromkeys((curve.stage, curve.chart) for curve in content.on_policy):
        group = [c for c in content.on_policy if (c.stage, c.chart) == (stage, title)]
        caption = f"Stage {stage}: {title}"
        if (drawing := line_chart(caption, group)) is not None:
            charts.append(Chart(caption, drawing, _curve_table(stage, group)))
    return charts


def rollouts(content: Content) -> Table:
    """What the student wrote in training, at its begin and at its end."""
    rows = []
    for stage, block in (content.summary.get("on_policy") or {}).items():
        rows.append((stage, "Rollouts", whole(block["written"]), f"{whole(block['written_tokens'])} tokens"))
        for key, label in ROLLOUTS.items():
            if key in block:
                rows.append((stage, label, number(block[key]["first"]), number(block[key]["last"])))
    note = "Means over the first and the last 20 steps with rollouts."
    return Table("The student's own text in training", ("Stage", "Figure", "First", "Last"), rows, note)


def _curve_table(stage: str, group: Sequence[Curve]) -> Table:
    by_name = {curve.name: dict(curve.points) for curve in group}
    steps = sorted({step for points in by_name.values() for step in points})
    rare = {step for curve in group if curve.dots for step, _ in curve.points}
    every = math.ceil(len(steps) / MOST_ROWS)
    shown_steps = [s for i, s in enumerate(steps) if i % every == 0 or i == len(steps) - 1 or s in rare]
    shown_steps = shown_steps[: 4 * MOST_ROWS]
    rows = [
        (whole(step), *(number(points[step]) if step in points else "" for points in by_name.values()))
        for step in shown_steps
    ]
    note = (
        f"{len(shown_steps)} of {len(steps)} steps; all are in metrics.jsonl."
        if len(shown_steps) < len(steps)
        else ""
    )
    return Table(f"Values of stage {stage}, {group[0].unit}", ("Step", *by_name), rows, note)


def costs(content: Content) -> list[Chart]:
    """Seconds by stage; speed and memory in the table."""
    if not content.costs:
        return []
    rows = [(stage, *_cost(facts)) for stage, facts in content.costs.items()]
    head = ("Stage", "Time", "Tokens", "Tokens/s", "Peak memory", "Note")
    used = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
    table = Table("Time, speed and memory", [head[i] for i in used], [[row[i] for i in used] for row in rows])
    amounts = [(name, facts["seconds"], duration(facts["seconds"])) for name, facts in content.costs.items()]
    return [Chart("Seconds by stage", bars("Seconds by stage", amounts), table)]


def _cost(facts: Mapping[str, Any]) -> Row:
    tokens, seconds, peak = facts.get("tokens"), facts["seconds"], facts.get("peak_rss_bytes")
    return (
        duration(seconds),
        "" if tokens is None else whole(tokens),
        whole(tokens / seconds) if tokens and seconds else "",
        "" if peak is None else size(peak),
        facts.get("note", ""),
    )
