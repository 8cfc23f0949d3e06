"""The tables of a task: why answers are invalid, which label was taken for which, and what requests cost."""

from __future__ import annotations

from potstill.report import money as report_money
from potstill.report.content import ROLES, Content
from potstill.report.numbers import whole
from potstill.report.tables import Table


def confusions(content: Content) -> list[Table]:
    """Which label was taken for which, of each trained model and the teacher, and each kind of reference."""
    tables = []
    details = (content.summary.get("task") or {}).get("details") or {}
    for role in content.roles:
        if role == "before":
            continue
        for kind, found in ((details.get(role) or {}).get("labels") or {}).items():
            rows = [
                (reference, *(whole(count) for count in counts))
                for reference, counts in zip(found["references"], found["counts"], strict=True)
            ]
            caption = f"{ROLES[role]} vs {kind}: answers (columns) by reference (rows)"
            tables.append(Table(caption, ("Reference", *found["answers"]), rows))
    return tables


def invalid(content: Content) -> Table:
    """Why answers are not what the task wants."""
    details = (content.summary.get("task") or {}).get("details") or {}
    rows = [
        (ROLES[role], reason, whole(count))
        for role in content.roles
        for reason, count in ((details.get(role) or {}).get("valid") or {}).get("reasons", {}).items()
    ]
    return Table("Invalid answers", ("Model", "Reason", "Answers"), rows)


def money(content: Content) -> Table:
    """What 1,000 requests cost, and when the student has paid for itself."""
    block = content.summary.get("money")
    rows = list(report_money.rows(block)) if block else []
    note = "Counted as if an answer of the student were worth one of the teacher; how often it is right, the result says."
    return Table("Cost of 1,000 requests", ("What", "Cost", "From"), rows, note)
