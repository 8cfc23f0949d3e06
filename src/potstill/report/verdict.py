"""One honest sentence about a run, and what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Iterator

from potstill.evaluate.likelihood import FORWARD_KL, PPL
from potstill.report.numbers import distinct, number, pair, percent
from potstill.report.summary import RESULTS, Summary, described, read
from potstill.types import Figure

FEW_PROMPTS = 60  # below this many, percentile intervals cover visibly less than they claim
KL = f"held-out {FORWARD_KL.label}"


def verdict(summary: Summary) -> str:
    """What the run achieved, from `summary.json` alone; a ratio only where it is defined."""
    text = "; ".join(part for part in (_divergence(summary), _retention(summary)) if part)
    return f"{text[0].upper()}{text[1:]}.{_control(summary)}"


def cautions(summary: Summary) -> list[str]:
    """What weakens the result: a weak teacher, too few prompts, a control that does as well, a setback, or
    answers that look clearly worse than the teacher's."""
    texts = (
        *(_weak_teacher(summary), _few_prompts(summary), _no_gain(summary)),
        *_setbacks(summary),
        *_behaviour(summary),
    )
    return [text for text in texts if text]


def _apart(one: Figure, other: Figure) -> bool | None:
    """Whether the intervals do not overlap; None where one of them was not measured."""
    a, b = one.interval, other.interval
    return None if a is None or b is None else a[1] < b[0] or b[1] < a[0]


def _of(summary: Summary, role: str, figure: Figure = FORWARD_KL) -> Figure:
    return read(summary, summary.get(role), figure.key)


def _retention(summary: Summary) -> str:
    """The first metric with a defined ratio for which keeping a share makes sense."""
    refused = ""
    for key, row in (summary.get("retention") or {}).items():
        ratio = read(summary, row, "ratio", about=key)
        if ratio.better == "down":
            continue
        if ratio.value is None:
            refused = refused or f"no share of the teacher's {ratio.label} is given ({ratio.reason})"
            continue
        low, high = map(percent, row["ci95"])
        verb = "kept" if ratio.value <= 1 else "reached"
        share = f"{percent(ratio.value)} (95 % interval {low} to {high}) of the teacher's {ratio.label}"
        above = ""
        if row.get("floor") is not None:
            above = f" above the {number(row['floor'])} that {row['floor_of']} reaches"
        return f"the student {verb} {share}{above}{_smaller(summary)}"
    return refused


def _smaller(summary: Summary) -> str:
    teacher, student = ((summary.get(role) or {}).get("params") for role in ("teacher", "student"))
    if not teacher or not student or student >= teacher:
        return ""
    return f" with {percent(student / teacher)} of its parameters"


def _divergence(summary: Summary) -> str:
    before, after = _of(summary, "before"), _of(summary, "after")
    if after.value is None:
        return f"{KL} is unknown ({after.reason})"
    if before.value is None:
        why = f"before training it is unknown ({before.reason})"
        return f"{KL} is {number(after.value)} nats per token; {why}"
    span = "from {} to {} nats per token".format(*distinct(before.value, after.value))
    if _apart(before, after) is False:
        return f"{KL} did not clearly move: {span}, and the 95 % intervals overlap"
    if after.value >= before.value:
        return f"{KL} did not fall: {span}"
    if after.value <= 0:
        factor = "no factor: the later value is not above 0"
    elif after.low is not None and after.low <= 0:
        factor = "no factor: the later interval includes 0"
    elif before.value < 1.05 * after.value:  # as a factor it would be written 1.0
        fall = 100 * (1 - after.value / before.value)
        factor = f"by {number(fall)} %"
    else:
        factor = f"{number(before.value / after.value, 1)}×"
    return f"{KL} fell {span} ({factor})"


def _control(summary: Summary) -> str:
    control, after = _of(summary, "control").value, _of(summary, "after").value
    if control is None or after is None:
        return ""
    ahead = " and in ".join(_ahead(summary))
    ahead = ahead and f", and is ahead in {ahead}"
    return f" The control student reached {distinct(control, after)[0]} nats per token{ahead}."


def _ahead(summary: Summary) -> Iterator[str]:
    """Other results in which the control is better than the distilled student."""
    for key in described(summary, *RESULTS):
        control, after = (read(summary, summary.get(role), key) for role in ("control", "after"))
        if key == FORWARD_KL.key or control.value is None or after.value is None or not after.better:
            continue
        if control.value != after.value and (control.value > after.value) == (after.better == "up"):
            clear = "" if _apart(control, after) else "not clearly: "
            yield f"{after.label} ({clear}{pair(control)[0]} against {pair(after)[0]})"


def _weak_teacher(summary: Summary) -> str:
    teacher = _of(summary, "reference", PPL).value
    for role, name in (("before", "untrained"), ("after", "distilled")):
        student = _of(summary, role, PPL).value
        if teacher is not None and student is not None and teacher >= student:
            theirs, ours = distinct(teacher, student)
            return f"The teacher's perplexity ({theirs}) is not below that of the {name} student ({ours}): on these texts the teacher may have little to teach."
    return ""


def _few_prompts(summary: Summary) -> str:
    figures = (read(summary, summary.get("after"), key) for key in described(summary, *RESULTS))
    fewest = min((f.n for f in figures if f.n is not None), default=FEW_PROMPTS)
    if fewest >= FEW_PROMPTS:
        return ""
    return f"Only {fewest} held-out prompts: intervals from so few are too narrow; 200 or more are better."


def _no_gain(summary: Summary) -> str:
    control, after = _of(summary, "control"), _of(summary, "after")
    if control.value is None or after.value is None:
        return ""
    if control.value <= after.value:
        return "The control student is at least as close to the teacher as the distilled one."
    if _apart(control, after) is False:
        return "Distilled and control student differ by less than their 95 % intervals."
    return ""


def _setbacks(summary: Summary) -> Iterator[str]:
    for key in described(summary, *RESULTS):
        before, after = (read(summary, summary.get(role), key) for role in ("before", "after"))
        if before.value is None or after.value is None or not _apart(before, after) or not before.better:
            continue
        if (after.value > before.value) != (before.better == "up"):
            was, now = pair(before)[0], pair(after)[0]
            yield f"{before.label} got worse in training: {was} before, {now} after."


def _behaviour(summary: Summary) -> Iterator[str]:
    """Where the student's own text is clearly worse than the teacher's."""
    blocks = summary.get("behaviour") or {}
    for key in described(summary, "behaviour"):
        teacher, student = (read(summary, blocks.get(role), key) for role in ("teacher", "after"))
        if teacher.value is None or student.value is None or not _apart(teacher, student):
            continue
        if student.better and (student.value > teacher.value) != (student.better == "up"):
            theirs, ours = pair(teacher)[0], pair(student)[0]
            yield f"{student.label}: {ours}, clearly worse than the teacher's {theirs}."
