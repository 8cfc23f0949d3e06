"""The tables of the page about the rows."""

from __future__ import annotations

from potstill.data.split import GRAM, NEAR
from potstill.report.bars import Bins, bars, histogram, shares
from potstill.report.content import Content
from potstill.report.numbers import percent, whole
from potstill.report.tables import Chart, Table


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


def data(content: Content) -> Table:
    """What the rows were, so that a repeat can be compared."""
    splits = (content.summary.get("data") or {}).items()
    rows = [(name, whole(split["rows"]), split["sha256"]) for name, split in splits if split["rows"]]
    note = "Of the rows as they were read, in their order: ids, conversations or text, tools."
    return Table("Rows", ("Rows for", "Number", "sha256"), rows, note)
