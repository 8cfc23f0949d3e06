"""What filters found in the teacher's answers, with samples."""

from __future__ import annotations

from potstill.report.content import Content
from potstill.report.numbers import whole
from potstill.report.tables import Table

SHOWN = 80  # characters of a sample


def filters(content: Content) -> Table | None:
    """One row a filter; None where nothing was filtered."""
    judged = content.summary.get("answers") or {}
    rows = [
        (
            f"{stage}: {found['label']}",
            "rejected" if found["action"] == "reject" else "counted and kept",
            f"{whole(found['found'])} of {whole(found['of'])}",
            " · ".join(f"{sample['row_id']}: {_short(sample['text'])}" for sample in found["samples"]),
        )
        for stage, about in judged.items()
        for found in about["filters"].values()
    ]
    note = "Each filter looks at what those above it have left. Secrets and personal data are not shown. All rejected answers are in rejected.jsonl."
    head = ("Filter", "What it finds is", "Answers", "Samples")
    return Table("What filters found in the answers to train on", head, rows, note) if rows else None


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}…"
