"""What the page shows: a summary and what the run folder holds beside it. Nothing here reads a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from potstill.data.split import Overlap
from potstill.recipe.defaults import Default
from potstill.report.curves import Curve

ROLES: Mapping[str, str] = {
    "teacher": "Teacher",
    "before": "Untrained student",
    "after": "Distilled student",
    "control": "Control student",
}


@dataclass(frozen=True)
class Content:
    """One run. A part that is empty is left out of the page."""

    summary: Mapping[str, Any]
    curves: Sequence[Curve] = ()
    samples: Sequence[Mapping[str, Any]] = ()  # lines of samples.jsonl, in the order in which they are shown
    recipe: str = ""
    overlap: Overlap | None = None
    trained_prompts: int = 0  # that the overlap was looked for in
    funnel: Sequence[tuple[str, int, Mapping[str, int]]] = ()  # step, rows left, rows dropped by reason
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)  # tokens of each row of a split
    costs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # a stage's facts, and its `note`
    defaults: Sequence[Default] = ()
    command: str = ""
    notes: Sequence[str] = ()  # how the figures came about, one sentence each
    on_policy: Sequence[Curve] = ()  # figures of the student's own text in training

    @property
    def roles(self) -> list[str]:
        """The models of the result table."""
        return [role for role in ROLES if role != "control" or self.summary.get("control")]

    def block(self, role: str) -> Mapping[str, Any]:
        """A model's figures in the summary."""
        return self.summary.get("reference" if role == "teacher" else role) or {}
