"""One honest sentence about a run, and what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Mapping

from potstill.report.numbers import number, pair, percent
from potstill.report.summary import RESULTS, Summary, described, read
from potstill.types import Figure

FEW_PROMPTS = 60  # below this many, percentile intervals cover visibly less than they claim
KL = "held-out KL(teacher‖student)"


def verdict(summary: Summary) -> str:
    """What the run achieved, from `summary.json` alone; a ratio only where it is defined."""
    text = "; ".join(part for part in (_retention(summary), _divergence(summary)) if part)
    return " ".join(part for part in (f"{text[0].upper()}{text[1:]}.", _control(summary)) if part)


def cautions(summary: Summary) -> tuple[str, ...]:
    """What weakens the result: too few prompts, a weak teacher, a control that does as well, a setback."""
    texts = (_weak_teacher(summary), _few_prompts(summary), _no_gain(summary), *_setbacks(summary))
    return tuple(text for text in texts if text)


def apart(one: Figure, other: Figure) -> bool:
    """Whether both intervals were measured and do not overlap."""
    a, b = one.interval, other.interval
    return a is not None and b is not None and (a[1] < b[0] or b[1] < a[0])


def _kl(summary: Summary, role: str) -> Figure:
    return read(summary, summary.get(role), "forward_kl")


def _retention(summary: Summary) -> str:
    """The first metric with a defined ratio for which keeping a share makes sense."""
    refused = ""
    for key, row in (summary.get("retention") or {}).items():
        ratio = read(summary, row, "ratio", about=key)
        if ratio.better == "down" or not isinstance(row, Mapping):
            continue
        if ratio.value is None:
            refused = refused or f"no share of the teacher's {ratio.label} is given ({ratio.reason})"
            continue
        ends = row.get("ci95")
        interval = f" (95 % interval {percent(ends[0])} to {percent(ends[1])})" if ends else " (no interval)"
        verb = "kept" if ratio.value <= 1 else "reached"
        share = f"{percent(ratio.value)}{interval} of the teacher's {ratio.label}"
        return f"the student {verb} {share}{_smaller(summary)}"
    return refused


def _smaller(summary: Summary) -> str:
    teacher, student = ((summary.get(role) or {}).get("params") for role in ("teacher", "student"))
    if not teacher or not student or student >= teacher:
        return ""
    return f" with {percent(student / teacher)} of its parameters"


def _divergence(summary: Summary) -> str:
    before, after = _kl(summary, "before"), _kl(summary, "after")
    if after.value is None:
        return f"{KL} is unknown ({after.reason})"
    if before.value is None:
        why = f"before training it is unknown ({before.reason})"
        return f"{KL} is {number(after.value)} nats per token; {why}"
    span = f"from {number(before.value)} to {number(after.value)} nats per token"
    if before.interval and after.interval and not apart(before, after):
        return f"{KL} did not clearly move: {span}, and the 95 % intervals overlap"
    if after.value >= before.value:
        return f"{KL} did not fall: {span}"
    factor = f"{number(before.value / after.value, 1)}×" if after.value > 0 else ""
    if not factor:
        factor = "no factor: the later value is not above 0"
    elif after.low is not None and after.low <= 0:
        factor = "no factor: the later interval includes 0"
    return f"{KL} fell {span} ({factor})"


def _control(summary: Summary) -> str:
    control, after = _kl(summary, "control"), _kl(summary, "after")
    if control.value is None or after.value is None:
        return ""
    return f"The control student reached {number(control.value)} nats per token."


def _weak_teacher(summary: Summary) -> str:
    teacher = read(summary, summary.get("reference"), "ppl").value
    for role, name in (("before", "untrained"), ("after", "distilled")):
        student = read(summary, summary.get(role), "ppl").value
        if teacher is not None and student is not None and teacher >= student:
            return (
                f"The teacher's perplexity ({number(teacher)}) is not below that of the {name} student "
                f"({number(student)}): on these texts the teacher may have little to teach."
            )
    return ""


def _few_prompts(summary: Summary) -> str:
    figures = (read(summary, summary.get("after"), key) for key in described(summary, *RESULTS))
    fewest = min((f.n for f in figures if f.n is not None and f.value is not None), default=None)
    if fewest is None or fewest >= FEW_PROMPTS:
        return ""
    return f"Only {fewest} held-out prompts: intervals from so few are too narrow; 200 or more are better."


def _no_gain(summary: Summary) -> str:
    control, after = _kl(summary, "control"), _kl(summary, "after")
    if control.value is None or after.value is None:
        return ""
    if control.value <= after.value:
        return "The control student is at least as close to the teacher as the distilled one."
    if control.interval and after.interval and not apart(control, after):
        return "Distilled and control student differ by less than their 95 % intervals."
    return ""


def _setbacks(summary: Summary) -> list[str]:
    texts = []
    for key in described(summary, *RESULTS):
        before, after = (read(summary, summary.get(role), key) for role in ("before", "after"))
        if before.value is None or after.value is None or not apart(before, after) or not before.better:
            continue
        if (after.value > before.value) != (before.better == "up"):
            was, now = pair(before)[0], pair(after)[0]
            texts.append(f"{before.label} got worse in training: {was} before, {now} after.")
    return texts
