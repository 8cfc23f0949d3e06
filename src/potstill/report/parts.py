"""The optional sections as tables and figures: data, behaviour, cost and what is needed to repeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potstill.report.bars import Bar, bars, histogram, shares
from potstill.report.metrics import ROLES
from potstill.report.model import Behaviour, Default, FunnelStep, Histogram, Overlap, StageCost
from potstill.report.numbers import duration, percent, size, whole
from potstill.report.views import Figure, Table, figure, shown


def overlap(found: Overlap) -> Table:
    """Held-out prompts that are also in the training data, by how alike they are."""

    def row(name: str, count: int | None, rule: str) -> tuple[str, ...]:
        if count is None:
            return name, "not looked for", "", rule
        share = percent(count / found.heldout, 1) if found.heldout else ""
        return name, whole(count), share, rule

    return Table(
        f"Held-out prompts ({whole(found.heldout)}) also in training ({whole(found.train)} prompts)",
        ("Overlap", "Prompts", "Share", "Counted when"),
        (
            row("Exact", found.exact, "the texts are equal"),
            row("Near", found.near, found.near_rule),
            row(f"{found.ngram_size}-gram", found.ngram, f"any {found.ngram_size} words in a row are shared"),
        ),
    )


def funnel(steps: Sequence[FunnelStep]) -> Figure:
    """How many rows were left after each step."""
    caption = "Rows left after each step"
    rows = tuple(
        (
            step.name,
            whole(step.left),
            "; ".join(f"{reason}: {whole(n)}" for reason, n in step.dropped) or "none",
        )
        for step in steps
    )
    found = [Bar(step.name, step.left, whole(step.left)) for step in steps]
    table = Table(caption, ("Step", "Rows left", "Dropped, by reason"), rows)
    return figure("funnel", caption, lambda ident, width: bars(ident, caption, found, width), table)


def lengths(found: Sequence[Histogram]) -> list[Figure]:
    """Histograms with the counts of their bins."""
    return [_length_figure(f"lengths-{index}", data) for index, data in enumerate(found)]


def _length_figure(ident: str, data: Histogram) -> Figure:
    names = [
        f"{whole(low)} to {whole(high)}" for low, high in zip(data.edges[:-1], data.edges[1:], strict=True)
    ]
    if data.open_ended:
        names[-1] = f"{whole(data.edges[-2])} or more"
    columns = [counts for _, counts in data.series]
    parts = [shares(counts) for counts in columns]
    rows = tuple(
        (name, *(f"{whole(c[i])} ({percent(p[i], 1)})" for c, p in zip(columns, parts, strict=True)))
        for i, name in enumerate(names)
    )
    head = (data.unit.capitalize(), *(name for name, _ in data.series))
    table = Table(f"Values: {data.title}", head, rows)
    return figure(ident, data.title, lambda i, width: histogram(i, data, width), table)


def behaviour(found: Sequence[Behaviour]) -> Table:
    """How free-running text looks, a row a model."""
    reasons = any(row.unfinished_reasoning.value for row in found)
    rows = tuple(
        (ROLES[row.role], shown(row.stop_rate, True), shown(row.length_ratio), shown(row.repetition, True))
        + ((shown(row.unfinished_reasoning, True),) if reasons else ())
        for row in found
    )
    return Table(
        "Free-running answers",
        ("Model", "Stops by itself", "Length, teacher = 1", "Repeated 4-grams")
        + (("Reasoning left open",) if reasons else ()),
        rows,
        "A student that never stops, runs long or loops shows it here before any score does.",
    )


def costs(found: Sequence[StageCost]) -> Figure:
    """Seconds by stage; speed and memory in the table."""
    caption = "Seconds by stage"
    rows = []
    for stage in found:
        speed = stage.tokens / stage.seconds if stage.tokens and stage.seconds else None
        memory = (stage.peak_rss_bytes, stage.peak_device_bytes)
        rows.append(
            (
                stage.stage,
                duration(stage.seconds),
                "" if stage.tokens is None else whole(stage.tokens),
                "" if speed is None else whole(speed),
                *("" if peak is None else size(peak) for peak in memory),
                stage.note,
            )
        )
    head = ("Stage", "Time", "Tokens", "Tokens/s", "Peak memory", "Peak GPU memory", "Note")
    used = [i for i in range(len(head)) if i < 2 or any(row[i] for row in rows)]
    table = Table(
        "Time, speed and memory",
        tuple(head[i] for i in used),
        tuple(tuple(row[i] for i in used) for row in rows),
    )
    found_bars = [Bar(stage.stage, stage.seconds, duration(stage.seconds)) for stage in found]
    return figure("costs", caption, lambda ident, width: bars(ident, caption, found_bars, width), table)


def defaults(found: Sequence[Default]) -> Table | None:
    """Every setting the recipe left open."""
    rows = tuple((setting.path, setting.value, setting.source) for setting in found)
    return Table("Settings the recipe left open", ("Setting", "Value", "Source"), rows) if rows else None


def versions(found: Mapping[str, str]) -> Table | None:
    """What the run was made with."""
    return Table("Versions", ("Part", "Version"), tuple(found.items())) if found else None
