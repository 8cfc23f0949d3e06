"""A comparison as files: one HTML page, a CSV of every value, and a Markdown table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from potstill.console import visible
from potstill.report import page
from potstill.report.bars import intervals
from potstill.report.compare import Comparison, Group, Line
from potstill.report.numbers import duration, pair, short, shown, whole
from potstill.report.tables import BETTER, Chart, Table
from potstill.store.disk import write_text
from potstill.types import Figure

NAME = "comparison"
COLUMNS = (
    "group", "run", "seed", "figure", "unit", "better", "value", "low", "high", "n",
    "against", "difference", "difference_low", "difference_high", "reason",
)  # fmt: skip


def write(comparison: Comparison, stem: Path) -> dict[str, Path]:
    """Write `stem`.html, .csv and .md, and return them by kind. Raises OSError."""
    texts = {"html": html(comparison), "csv": as_csv(comparison), "md": markdown(comparison)}
    outputs = {kind: stem.with_name(f"{stem.name}.{kind}") for kind in texts}
    for kind, path in outputs.items():
        write_text(path, texts[kind])
        path.chmod(0o644)
    return outputs


def html(comparison: Comparison) -> str:
    """The page: under the rules of a run's page, and with its style."""
    recipes = len(comparison.groups)
    values = {
        **page.frame(),
        "title": f"{len(comparison.runs)} runs of {recipes} recipe{'s' * (recipes > 1)}",
        "comparison": comparison,
        "plot": plot(comparison),
        "runs": runs(comparison),
        "settings": settings(comparison),
    }
    return page.environment().get_template("compare.html.j2").render(values)


def plot(comparison: Comparison) -> Chart | None:
    """The first headline figure of every group, with its interval."""
    for line in comparison.lines:
        spots = [(g.name, mean, index) for index, (g, mean) in enumerate(_by_group(comparison, line))]
        if line.about.place == "headline" and any(mean.value is not None for _, mean, _ in spots):
            better = f" ({BETTER[line.about.better]})" if line.about.better else ""
            caption = f"{line.about.label} on held-out prompts{better}"
            rows = [(name, *pair(mean), "" if mean.n is None else whole(mean.n)) for name, mean, _ in spots]
            table = Table(f"Values: {line.about.label}", ("Recipe", "Mean", "95 % interval", "n"), rows)
            return Chart(caption, intervals(caption, spots), table)
    return None


def runs(comparison: Comparison) -> Table:
    """Every run with its own values."""
    lines = [line for line in comparison.lines if line.about.place == "headline"]
    head = ("Run", "Recipe", "Seed", *(line.about.label for line in lines), "Parameters", "Training time")
    rows = []
    for group in comparison.groups:
        for run in group.runs:
            figures = [
                shown(run.figures[k]) if (k := line.about.key) in run.figures else "" for line in lines
            ]
            params, seconds = run.summary["student"].get("params"), run.summary["train"].get("seconds")
            cost = (short(params) if params else "", duration(seconds) if seconds is not None else "")
            rows.append((run.name, group.name, str(run.seed), *figures, *cost))
    return Table("Every run, with intervals of its own", head, rows)


def settings(comparison: Comparison) -> Table:
    """What the recipes of the groups do not share."""
    head = ("Setting", *(group.name for group in comparison.groups))
    rows = [(path, *(value or "not set" for value in values)) for path, values in comparison.settings]
    return Table("Settings in which the recipes differ", head, rows)


def as_csv(comparison: Comparison) -> str:
    """One line for a figure of a run, and one for its mean over a group with the difference from the first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    first = comparison.groups[0].name
    for line in comparison.lines:
        for index, (group, mean) in enumerate(_by_group(comparison, line)):
            for run in group.runs:
                if line.about.key in run.figures:
                    own = {"group": visible(group.name), "run": visible(run.name), "seed": run.seed}
                    writer.writerow(own | _value(run.figures[line.about.key]))
            row = {"group": visible(group.name)} | _value(mean)
            if index:
                difference = line.differences[index - 1]
                ends = {"difference_low": difference.low, "difference_high": difference.high}
                row |= {"against": visible(first), "difference": difference.value, **ends}
                row["reason"] = row["reason"] or difference.reason
            writer.writerow(row)
    return text.getvalue()


def _value(figure: Figure) -> dict[str, Any]:
    about = {"figure": figure.key, "unit": figure.unit, "better": figure.better}
    measured = {name: getattr(figure, name) for name in ("value", "low", "high", "n", "reason")}
    return about | measured


def markdown(comparison: Comparison) -> str:
    """The table of means and differences, and what the figures rest on."""
    first, *others = comparison.groups
    head = ["", *(f"{group.name} ({group.about})" for group in comparison.groups)]
    head += [f"{group.name} − {first.name}" for group in others]
    rows = [
        [_label(line.about), *map(shown, line.means), *map(shown, line.differences)]
        for line in comparison.lines
    ]
    parts = [*comparison.sentences(), _rows(head, rows)]
    if comparison.settings:
        table = settings(comparison)
        parts.append(_rows(table.head, table.rows))
    return "\n\n".join([*map(visible, parts[:-1]), parts[-1], *map(visible, comparison.notes())]) + "\n"


def _label(about: Figure) -> str:
    unit = "" if about.unit == "share" else about.unit
    return ", ".join(part for part in (about.label, unit, BETTER.get(about.better, "")) if part)


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(visible(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


def _by_group(comparison: Comparison, line: Line) -> Sequence[tuple[Group, Figure]]:
    return list(zip(comparison.groups, line.means, strict=True))
