"""The tables of the page that compare models, and the charts with the table of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from potstill.report import money, verdict
from potstill.report.bars import intervals
from potstill.report.content import ROLES, Content
from potstill.report.figures import NOT_MEASURED, RESULTS, described, read
from potstill.report.numbers import duration, number, pair, percent, short, shown, whole
from potstill.types import Figure

STYLES = {"after": 0, "teacher": 1, "before": 2, "control": 3}
BETTER = {"up": "higher is better", "down": "lower is better"}
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
