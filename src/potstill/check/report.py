"""The result of a check, for people and for programs."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from potstill.check.settings import LEGEND, Setting
from potstill.check.settings import lines as setting_lines
from potstill.console import visible
from potstill.data.ledger import Account
from potstill.recipe.defaults import Default

WIDTH = 100  # of a printed line
PARTS = 12  # of a row that are printed


@dataclass(frozen=True)
class Item:
    """One property that was checked."""

    name: str
    passed: bool
    detail: str

    @property
    def mark(self) -> str:
        return "ok  " if self.passed else "FAIL"


@dataclass(frozen=True)
class Rendered:
    """A row as the models read it, with scored tokens between ⟦ and ⟧, and what becomes of its parts.

    `spans` are the ranges of scored tokens among the row's `tokens`; each end is behind its last one.
    """

    row_id: str
    split: str
    text: str
    parts: tuple[Account, ...] = ()
    unread: tuple[str, ...] = ()  # columns
    tokens: int = 0
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Count:
    """How many parts of one kind the rows hold, and how many of them are rendered and scored."""

    what: str
    held: int
    rendered: int
    scored: int


@dataclass(frozen=True)
class CheckReport:
    """The preflight's result."""

    recipe: str
    items: tuple[Item, ...]
    stages: tuple[str, ...]
    defaults: tuple[Default, ...]
    rows: tuple[Rendered, ...]
    notes: tuple[str, ...] = ()
    ledger: tuple[Count, ...] = ()
    settings: tuple[Setting, ...] = ()

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-safe values."""
        return {"passed": self.passed, **asdict(self)}

    def text(self, width: int | None = None) -> str:
        """The report as lines of text; without a width, as of a terminal, only rows are wrapped."""
        lines = [f"{self.recipe}: {'can run' if self.passed else 'cannot run'}", ""]
        lines += [f"  {item.mark} {item.name}: {item.detail}" for item in self.items]
        lines += ["", f"stages: {' → '.join(self.stages)}", "", LEGEND, *setting_lines(self.settings, WIDTH)]
        lines += ["", "what `auto` becomes, and why:"]
        lines += [f"  {d.path} = {d.shown}  ({d.source})" for d in self.defaults]
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            "",
            "what the rows hold (rendered: models read it; scored: training predicts it):",
            *(f"  {_counted(count)}" for count in self.ledger),
        ]
        for row in self.rows:
            spans = ", ".join(f"{start}–{end - 1}" for start, end in row.spans)
            scored = f"tokens {spans} of {row.tokens} are scored," if spans else "scored tokens"
            lines += ["", f"row {row.row_id} ({row.split}), {scored} between ⟦ and ⟧:"]
            for line in visible(row.text).split("\n"):
                lines += [f"    {part}" for part in textwrap.wrap(line, (width or WIDTH) - 4) or [""]]
            lines += _accounts(row)
        if width is not None:
            lines = [part for line in lines for part in _wrapped(line, width)]
        return visible("\n".join(lines))


def _counted(count: Count) -> str:
    if count.what.startswith("column "):
        return f"{count.what}: in {count.held} rows, not read"
    return f"{count.what}: {count.held} held, {count.rendered} rendered, {count.scored} scored"


def _accounts(row: Rendered) -> list[str]:
    """One line on each part of a row, in the row's order."""
    lines = []
    for account in row.parts[:PARTS]:
        part = account.part
        place = f"turn {part.turn}" if part.turn else "tools"
        fate = ("rendered, scored" if account.scored else "rendered") if account.rendered else "not rendered"
        lines.append(f'  {place}, {part.what}: "{visible(part.value)}" – {fate}')
    if len(row.parts) > PARTS:
        lines.append(f"  … {len(row.parts) - PARTS} parts more: --json lists all")
    return lines + [f"  column {name}: not read" for name in row.unread]


def _wrapped(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.wrap(line, width, subsequent_indent=f"{indent}  ", break_on_hyphens=False) or [line]
