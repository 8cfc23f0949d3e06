"""The tables of the page, and the charts with the table of their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from potstill.data.split import GRAM, NEAR
from potstill.report import money, verdict
from potstill.report.bars import Bins, bars, histogram, intervals, shares
from potstill.report.content import ROLES, Content
from potstill.report.curves import Curve, line_chart
from potstill.report.numbers import duration, number, pair, percent, short, shown, size, whole
from potstill.report.summary import NOT_MEASURED, RESULTS, described, read
from potstill.types import Figure

MOST_ROWS = 120
STYLES = {"after": 0, "teacher": 1, "before": 2, "control": 3}
BETTER = {"up": "higher is better", "down": "lower is better"}
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
RETENTION = "Retention: what share of the teacher's score arrived"
FLOOR = "A floor is what an answer that knows nothing reaches; both scores count only above it."
Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """Text in rows; the first cell of a row names it. `note` stands below."""

    caption: str
    head: Row
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing and the table of its values."""

    caption: str
    drawing: Markup
    table: Table


def results(content: Content) -> list[tuple[Figure, list[Figure]]]:
    """Each figure of the result table, described, and what every model has of it, where any says something."""
    return [
        (about, figures)
        for about, figures in _figures(content)
        if not _compared_with_nobody(content, figures) and any(f.reason != NOT_MEASURED for f in figures)
    ]


def not_compared(content: Content) -> str:
    """The figures that no model has because the teacher gives text alone, in one sentence; "" for none."""
    names = [about.label for about, figures in _figures(content) if _compared_with_nobody(content, figures)]
    return f"Not measured, because {verdict.TEXT_ALONE}: {verdict.listed(names)}." if names else ""


def _figures(content: Content) -> list[tuple[Figure, list[Figure]]]:
    """Each described figure, and what every model has of it."""
    rows = []
    for key, about in described(content.summary, *RESULTS).items():
        figures = [read(content.summary, content.block(role), key) for role in content.roles]
        if figures[0].reason == NOT_MEASURED and content.summary.get("money"):
            figures[0] = replace(figures[0], reason="a served teacher writes nothing in an evaluation")
        rows.append((Figure(key, **about), figures))
    return rows


def _compared_with_nobody(content: Content, figures: Sequence[Figure]) -> bool:
    """Whether a teacher of text alone leaves every student without the figure."""
    students = [f for role, f in zip(content.roles, figures, strict=True) if role != "teacher"]
    return all(f.value is None for f in students) and students[-1].reason == verdict.TEXT_ALONE


def highlights(content: Content) -> list[Row]:
    """The figures to see first: (name, value, remark)."""
    summary = content.summary
    rows: list[Row] = []
    for key in [*verdict.task_figures(summary)[:1], *described(summary, "headline")]:
        before, after = (read(summary, summary.get(role), key) for role in ("before", "after"))
        value, span = pair(after)
        if value:
            was = f"before: {pair(before)[0]}; " if before.value is not None else ""
            rows.append((after.label, value, f"{was}95 % interval {span or 'not measured'}"))
    teacher, student = ((summary.get(side) or {}).get("params") for side in ("teacher", "student"))
    if student:
        share = f"{percent(student / teacher)} of the teacher" if teacher else ""
        rows.append(("Student's parameters", short(student), share))
    if remark := money.headline(summary.get("money")):
        block = summary["money"]
        cost = money.written(block["student"]["per_1000_requests"], block["currency"])
        rows.append(("Cost of 1,000 requests", cost, remark))
    train = summary.get("train") or {}
    if train.get("seconds") is not None:
        remark = f"{whole(train['tokens_per_second'])} tokens per second"
        rows.append(("Training time", duration(train["seconds"]), remark))
    return rows


def distances(content: Content) -> list[Chart]:
    """The headline figures of the students, with intervals."""
    charts = []
    for about, figures in results(content):
        models = zip(content.roles, figures, strict=True)
        spots = [(ROLES[role], figure, STYLES[role]) for role, figure in models if role != "teacher"]
        if about.place == "headline" and any(figure.value is not None for _, figure, _ in spots):
            better = f" ({BETTER[about.better]})" if about.better else ""
            caption = f"{about.label} on held-out prompts{better}"
            rows = [(label, *pair(f), "" if f.n is None else whole(f.n)) for label, f, _ in spots]
            table = Table(f"Values: {about.label}", ("Model", "Value", "95 % interval", "n"), rows)
            charts.append(Chart(caption, intervals(caption, spots), table))
    return charts


def by_stage(content: Content) -> Table:
    """Every measured quantity before and after each training stage, where there is more than one."""
    summary, rows = content.summary, []
    for stage in summary.get("by_stage") or ():
        for key, about in described(summary, *RESULTS).items():
            before, after = (read(summary, stage[side], key) for side in ("before", "after"))
            if before.value is None and after.value is None:
                continue
            paired = read(summary, stage.get("difference"), key)
            judgement = verdict.judgement(paired)
            words = f"{shown(paired)}: {verdict.AGAINST[judgement]}" if judgement else shown(paired)
            rows.append((stage["stage"], about["label"], shown(before), shown(after), words))
    note = (
        "On the same held-out prompts, with 95 % intervals; differences are paired: the same prompts drawn together. "
        "Shares differ in points."
    )
    head = ("Stage", "Metric", "Before it", "After it", "Difference")
    return Table("Stage by stage", head, rows, note)


def against_control(content: Content) -> Table | None:
    """The distilled student and its control, judged figure by figure on the same prompts."""
    summary, rows = content.summary, []
    for key, paired in ((summary.get("differences") or {}).get("control") or {}).items():
        if key.endswith("_reason"):
            continue
        sides = [verdict.of_role(summary, role, key) for role in ("after", "control")]
        value = read(summary, {key: paired}, key) if paired else Figure(key, reason="not compared")
        judgement = verdict.AGAINST[verdict.judged(summary, "control", key)]
        rows.append((sides[0].label, judgement, shown(value), *map(shown, sides)))
    if not rows:
        return None
    head = ("Metric", "The distilled student is", "Difference", "Distilled student", "Control student")
    note = (
        "Paired 95 % intervals: both students on the same prompts, drawn together. Shares differ in points."
    )
    return Table("Against the control, prompt by prompt", head, rows, note)


def retention(content: Content) -> Table:
    """How much of each score arrived."""
    rows = []
    for key, row in (content.summary.get("retention") or {}).items():
        scores = [read(content.summary, row, side, key) for side in ("teacher", "student", "control")]
        ratio, share = read(content.summary, row, "ratio", key), ""
        if ratio.value is not None:
            low, high = map(percent, row["ci95"])
            share = f"{percent(ratio.value)} ({low} to {high})"
        floor = ""
        if row.get("floor") is not None:
            floor = f", above the floor of {number(row['floor'])} ({row['floor_of']})"
        rows.append((ratio.label + floor, *map(shown, scores), share or f"refused: {ratio.reason}"))
    floors = any("floor" in row[0] for row in rows)
    above, note = (" above the floor", FLOOR) if floors else ("", "")
    head = ("Metric", "Teacher", "Distilled student", "Control student", f"Student / teacher{above} (95 %)")
    return Table(RETENTION, head, rows, note)


def behaviour(content: Content) -> Table:
    """How every model's own text looks."""
    note = "A student that never stops, runs long or loops shows it here before any score does."
    return _by_model(content, "behaviour", "Free-running answers", note)


def speed(content: Content) -> Table:
    """What using each model costs."""
    return _by_model(content, "cost", "What each model's answers cost")


def _by_model(content: Content, place: str, caption: str, note: str = "") -> Table:
    summary, about = content.summary, described(content.summary, place)
    blocks = {ROLES[role]: block for role in ROLES if (block := (summary.get(place) or {}).get(role))}
    rows = [(label, *(shown(read(summary, block, key)) for key in about)) for label, block in blocks.items()]
    units = {"": "", "share": ""}
    head = [a["label"] + units.get(a["unit"], f", {a['unit']}") for a in about.values()]
    return Table(caption, ("Model", *head), rows, note)


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


def overlap(content: Content) -> Table | None:
    """Held-out prompts that are also in the training data, by how alike they are."""
    seen = content.overlap
    if seen is None:
        return None
    rules = (
        ("Exact", seen.exact, "the texts are equal"),
        ("Near", seen.near, f"Jaccard index of the word sets at least {NEAR}"),
        (f"{GRAM}-gram", seen.gram, f"any {GRAM} words in a row are shared"),
    )
    rows = [(name, whole(n), percent(n / seen.of, 1) if seen.of else "", rule) for name, n, rule in rules]
    trained = f"{whole(content.trained_prompts)} prompts"
    caption = f"Held-out prompts ({whole(seen.of)}) also in training ({trained})"
    return Table(caption, ("Overlap", "Prompts", "Share", "Counted when"), rows)


def funnel(content: Content) -> list[Chart]:
    """How many rows were left after each step."""
    if not content.funnel:
        return []
    caption = "Rows left after each step"
    rows = [
        (step, whole(left), "; ".join(f"{reason}: {whole(n)}" for reason, n in dropped.items()) or "none")
        for step, left, dropped in content.funnel
    ]
    drawing = bars(caption, [(step, left, whole(left)) for step, left, _ in content.funnel])
    return [Chart(caption, drawing, Table(caption, ("Step", "Rows left", "Dropped, by reason"), rows))]


def lengths(content: Content) -> list[Chart]:
    """A histogram of row lengths with the counts of its bins."""
    if not content.lengths:
        return []
    bins, title = Bins(content.lengths), "Length of rows"
    columns = [
        [f"{whole(count)} ({percent(share, 1)})" for count, share in zip(counts, shares(counts), strict=True)]
        for counts in bins.counts.values()
    ]
    rows = list(zip(bins.names(), *columns, strict=True))
    table = Table(f"Values: {title}", ("Tokens", *bins.counts), rows)
    return [Chart(title, histogram(title, "tokens", bins), table)]


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


def defaults(content: Content) -> Table:
    """Every setting the recipe left open."""
    rows = [(default.path, default.shown, default.source) for default in content.defaults]
    return Table("Settings the recipe left open", ("Setting", "Value", "Source"), rows)


def precision(content: Content) -> Table:
    """The number formats that the run computed in."""
    rows = list(((content.summary.get("made") or {}).get("precision") or {}).items())
    return Table("Number formats", ("Computed", "In"), rows)


def versions(content: Content) -> Table:
    """What the run was made with."""
    rows = list((content.summary.get("versions") or {}).items())
    return Table("Versions", ("Part", "Version"), rows)


def data(content: Content) -> Table:
    """What the rows were, so that a repeat can be compared."""
    splits = (content.summary.get("data") or {}).items()
    rows = [(name, whole(split["rows"]), split["sha256"]) for name, split in splits if split["rows"]]
    note = "Of the rows as they were read, in their order: ids, conversations or text, tools."
    return Table("Rows", ("Rows for", "Number", "sha256"), rows, note)
