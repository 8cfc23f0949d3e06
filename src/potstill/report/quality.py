"""What filters found in the teacher's answers, with samples."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.report.content import Content
from potstill.report.numbers import whole
from potstill.report.tables import Table

SHOWN = 80  # characters of a sample
TASK = "task"  # the name under which a task judges


def filters(content: Content) -> Table | None:
    """One row a filter; None where nothing was filtered."""
    judged = content.summary.get("answers") or {}
    rows = [
        (
            f"{stage}: {found['label']}",
            "rejected" if found["action"] == "reject" else "counted and kept",
            f"{whole(found['found'])} of {whole(found['of'])}",
            " · ".join(_sample(sample, with_reason=name == TASK) for sample in found["samples"]),
        )
        for stage, about in judged.items()
        for name, found in about["filters"].items()
    ]
    note = "Each filter looks at what those above it have left. Secrets and personal data are not shown. All rejected answers are in rejected.jsonl."
    head = ("Filter", "What it finds is", "Answers", "Samples")
    return Table("What filters found in the answers to train on", head, rows, note) if rows else None


def replies(content: Content) -> Table | None:
    """One row a reason for which replies hold no answer that can be used; None where all do."""
    judged = content.summary.get("answers") or {}
    rows = []
    for stage, about in judged.items():
        for reason, samples in about.get("replies", {}).items():
            shown = " · ".join(f"{sample['row_id']}: {_short(sample['text'])}" for sample in samples)
            rows.append((f"{stage}: {reason}", whole(about["rejected"].get(reason, len(samples))), shown))
    note = "Held-out rows are among them. What was received stands in rejected.jsonl, and as it came in the journal."
    head = ("Why", "Replies", "Samples")
    return Table("Replies without an answer that can be used", head, rows, note) if rows else None


def _sample(sample: Mapping[str, str], *, with_reason: bool) -> str:
    """A sample in one line; a task has several reasons, a filter says in its name what it finds."""
    shown = f"{sample['row_id']}: {_short(sample['text'])}"
    return f"{shown} ({sample['reason']})" if with_reason else shown


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}…"
