"""One honest sentence about a run, and what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.report.metrics import KNOWN, Metric, by_key
from potstill.report.numbers import Measured, number, pair, percent, read

FEW_PROMPTS = 60  # below this many, percentile intervals cover visibly less than they claim
KL = "held-out KL(teacher‖student)"
Summary = Mapping[str, Any]


def verdict(summary: Summary) -> str:
    """What the run achieved, from `summary.json` alone; a ratio only where it is defined."""
    parts = (_retention(summary), _divergence(summary))
    text = "; ".join(part for part in parts if part)
    return " ".join(part for part in (f"{text[0].upper()}{text[1:]}.", _control(summary)) if part)


def cautions(summary: Summary) -> tuple[str, ...]:
    """What weakens the result: too few prompts, a weak teacher, a control that does as well, a setback."""
    found = (_weak_teacher(summary), _few_prompts(summary), _no_gain(summary), *_setbacks(summary))
    return tuple(text for text in found if text)


def apart(one: Measured, other: Measured) -> bool:
    """Whether both intervals were measured and do not overlap."""
    a, b = one.interval, other.interval
    return a is not None and b is not None and (a[1] < b[0] or b[1] < a[0])


def _retention(summary: Summary) -> str:
    """The first metric with a defined ratio for which keeping a share makes sense."""
    refused = ""
    for key, row in (summary.get("retention") or {}).items():
        metric = by_key(key)
        if metric.lower_is_better or not isinstance(row, Mapping):
            continue
        ratio = read(row, "ratio")
        if ratio.value is None:
            refused = refused or f"no share of the teacher's {metric.label} is given ({ratio.reason})"
            continue
        ends = row.get("ci95")
        interval = f" (95 % interval {percent(ends[0])} to {percent(ends[1])})" if ends else " (no interval)"
        verb = "kept" if ratio.value <= 1 else "reached"
        return (
            f"the student {verb} {percent(ratio.value)}{interval} of the teacher's {metric.label}"
            + _smaller(summary)
        )
    return refused


def _smaller(summary: Summary) -> str:
    teacher, student = ((summary.get(role) or {}).get("params") for role in ("teacher", "student"))
    if not teacher or not student or student >= teacher:
        return ""
    return f" with {percent(student / teacher)} of its parameters"


def _divergence(summary: Summary) -> str:
    before, after = (read(summary.get(block), "forward_kl") for block in ("before", "after"))
    if after.value is None:
        return f"{KL} is unknown ({after.reason})"
    if before.value is None:
        return (
            f"{KL} is {number(after.value)} nats per token; before training it is unknown ({before.reason})"
        )
    span = f"from {number(before.value)} to {number(after.value)} nats per token"
    if before.interval and after.interval and not apart(before, after):
        return f"{KL} did not clearly move: {span}, and the 95 % intervals overlap"
    if after.value >= before.value:
        return f"{KL} did not fall: {span}"
    return f"{KL} fell {span} ({_factor(before, after)})"


def _factor(before: Measured, after: Measured) -> str:
    if before.value is None or after.value is None or after.value <= 0:
        return "no factor: the later value is not above 0"
    if after.low is not None and after.low <= 0:
        return "no factor: the later interval includes 0"
    return f"{number(before.value / after.value, 1)}×"


def _control(summary: Summary) -> str:
    control, after = (read(summary.get(block), "forward_kl") for block in ("control", "after"))
    if control.value is None or after.value is None:
        return ""
    return f"The control student reached {number(control.value)} nats per token."


def _weak_teacher(summary: Summary) -> str:
    teacher = read(summary.get("reference"), "ppl")
    for block, name in (("before", "untrained"), ("after", "distilled")):
        student = read(summary.get(block), "ppl")
        if teacher.value is not None and student.value is not None and teacher.value >= student.value:
            return (
                f"The teacher's perplexity ({number(teacher.value)}) is not below that of the {name} student "
                f"({number(student.value)}): on these texts the teacher may have little to teach."
            )
    return ""


def _few_prompts(summary: Summary) -> str:
    after = summary.get("after") or {}
    counts = [n for n in (read(after, metric.key).n for metric in KNOWN) if n is not None]
    fewest = min(counts, default=None)
    if fewest is None or fewest >= FEW_PROMPTS:
        return ""
    return f"Only {fewest} held-out prompts: intervals from so few are too narrow; 200 or more are better."


def _no_gain(summary: Summary) -> str:
    control, after = (read(summary.get(block), "forward_kl") for block in ("control", "after"))
    if control.value is None or after.value is None:
        return ""
    if control.value <= after.value:
        return "The control student is at least as close to the teacher as the distilled one."
    if control.interval and after.interval and not apart(control, after):
        return "Distilled and control student differ by less than their 95 % intervals."
    return ""


def _setbacks(summary: Summary) -> list[str]:
    before, after = summary.get("before"), summary.get("after")
    return [_setback(metric, read(before, metric.key), read(after, metric.key)) for metric in KNOWN]


def _setback(metric: Metric, before: Measured, after: Measured) -> str:
    if before.value is None or after.value is None or not apart(before, after):
        return ""
    if (after.value > before.value) != metric.lower_is_better:
        return ""
    was, now = pair(before, metric.percent)[0], pair(after, metric.percent)[0]
    return f"{metric.label} got worse in training: {was} before, {now} after."
