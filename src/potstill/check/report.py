"""The result of a check, for people and for programs."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from potstill.console import visible
from potstill.recipe.defaults import Default

WIDTH = 100  # of a printed line


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
    """A row as the models read it, with scored tokens between ⟦ and ⟧."""

    row_id: str
    split: str
    text: str


@dataclass(frozen=True)
class CheckReport:
    """The preflight's result."""

    recipe: str
    items: tuple[Item, ...]
    stages: tuple[str, ...]
    defaults: tuple[Default, ...]
    rows: tuple[Rendered, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.items)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-safe values."""
        return {"passed": self.passed, **asdict(self)}

    def text(self) -> str:
        """The report as lines of text."""
        lines = [f"{self.recipe}: {'can run' if self.passed else 'cannot run'}", ""]
        lines += [f"  {item.mark} {item.name}: {item.detail}" for item in self.items]
        lines += ["", f"stages: {' → '.join(self.stages)}", "", "defaults that `auto` becomes:"]
        lines += [f"  {d.path} = {d.shown}  ({d.source})" for d in self.defaults]
        lines += [f"note: {note}" for note in self.notes]
        for row in self.rows:
            lines += ["", f"row {row.row_id} ({row.split}), scored tokens between ⟦ and ⟧:"]
            for line in visible(row.text).split("\n"):
                lines += [f"    {part}" for part in textwrap.wrap(line, WIDTH - 4) or [""]]
        return visible("\n".join(lines))
