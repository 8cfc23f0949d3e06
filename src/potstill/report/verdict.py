"""One honest sentence about a run, and what a reader should know before believing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from potstill.evaluate.likelihood import COARSE, FORWARD_KL, PPL
from potstill.report import on_policy
from potstill.report.figures import RESULTS, Summary, described, read
from potstill.report.numbers import distinct, number, pair, percent
from potstill.types import Figure

EQUAL = 1e-6  # nats, below which two models say the same
FEW_PROMPTS = 60  # below this many, percentile intervals cover visibly less than they claim
TASK_FIRST = {  # what a task is about, before how alike texts are
    key: place
    for place, key in enumerate(
        f"{name}_{kind}"
        for kind in ("gold", "teacher")
        for name in ("label_accuracy", "field_exactness", "number_exactness")
    )
}
TEXT_ALONE = "the teacher gives text alone"
KL = f"held-out {FORWARD_KL.label}"
LEAST = COARSE[0]  # its lower bound, of a teacher that states its likeliest ids alone
AGAINST = {
    "better": "clearly better",
    "worse": "clearly worse",
    "even": "not known to differ",
    "": "not compared",
}


def verdict(summary: Summary) -> str:
    """What the run achieved, from `summary.json` alone; a ratio only where it is defined."""
    parts = _divergence(summary), _right(summary), _retention(summary)
    text = "; ".join(part for part in parts if part)
    return " ".join([f"{text[0].upper()}{text[1:]}.{_control(summary)}", *on_policy.stops(summary)])


def cautions(summary: Summary) -> list[str]:
    """What weakens the result: a weak teacher, too few prompts, a control that does as well, a setback, or
    answers that look clearly worse than the teacher's."""
    texts = (
        *(_weak_teacher(summary), _few_prompts(summary), _no_gain(summary)),
        *_setbacks(summary),
        *_setbacks_of_stages(summary),
        *_behaviour(summary),
        *on_policy.alarms(summary),
    )
    return [text for text in texts if text]


def judged(summary: Summary, role: str, key: str) -> str:
    """What the paired interval says of the distilled student against another model: "better", "worse", "even";
    "" where there is none."""
    return judgement(read(summary, (summary.get("differences") or {}).get(role), key))


def judgement(paired: Figure) -> str:
    """What a paired difference says of its first side: "better", "worse", "even"; "" where there is none."""
    if paired.value is None or paired.interval is None or not paired.better:
        return ""
    low, high = paired.interval
    if low <= 0 <= high:
        return "even"
    return "better" if (paired.value > 0) == (paired.better == "up") else "worse"


def _differ(summary: Summary, role: str, one: Figure, other: Figure) -> bool | None:
    """Whether two models clearly differ: by their paired interval, else by their own ones; None without any."""
    if paired := judged(summary, role, one.key):
        return paired != "even"
    a, b = one.interval, other.interval
    return None if a is None or b is None else a[1] < b[0] or b[1] < a[0]


def _of(summary: Summary, role: str, figure: Figure = FORWARD_KL) -> Figure:
    return read(summary, summary.get(role), figure.key)


def _retention(summary: Summary) -> str:
    """The first metric with a defined ratio for which keeping a share makes sense; those of the task come first."""
    refused = ""
    rows = (summary.get("retention") or {}).items()
    for key, row in sorted(rows, key=lambda one: TASK_FIRST.get(one[0], len(TASK_FIRST))):
        ratio = read(summary, row, "ratio", about=key)
        if ratio.better == "down":
            continue
        if ratio.value is None and summary.get("task"):
            continue  # both values are said already
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


def task_figures(summary: Summary) -> list[str]:
    """The figures of right answers that the student has, the first one first."""
    return [key for key in TASK_FIRST if read(summary, summary.get("after"), key).value is not None]


def _right(summary: Summary) -> str:
    """How often answers to the task are right, the student's beside the teacher's; "" without a task."""
    for key in task_figures(summary):
        student, teacher = (read(summary, summary.get(role), key) for role in ("after", "reference"))
        value, span = pair(student)
        theirs = "" if teacher.value is None else f", of the teacher {pair(teacher)[0]}"
        return f"{student.label} of the student: {value} (95 % interval {span}){theirs}"
    return ""


def _equal(before: Figure) -> bool:
    """Whether the student began as its teacher, as one does that teaches itself."""
    return before.value is not None and abs(before.value) < EQUAL


def _smaller(summary: Summary) -> str:
    teacher, student = ((summary.get(role) or {}).get("params") for role in ("teacher", "student"))
    if not teacher or not student or student >= teacher:
        return ""
    return f" with {percent(student / teacher)} of its parameters"


def _divergence(summary: Summary) -> str:
    before, after = _of(summary, "before"), _of(summary, "after")
    if after.value is None and after.reason == TEXT_ALONE:
        return _text_alone(summary)
    if after.value is None:
        least = _of(summary, "after", LEAST)
        bound = (
            "" if least.value is None else f"; on the ids that it states it is at least {number(least.value)}"
        )
        return f"{KL} is unknown ({after.reason}{bound})"
    if before.value is None:
        why = f"before training it is unknown ({before.reason})"
        return f"{KL} is {number(after.value)} nats per token; {why}"
    if _equal(before):
        moved = f"{number(after.value)} nats per token, and the student began as its teacher"
        return f"{KL} is {moved}: so far has it moved away"
    span = "from {} to {} nats per token".format(*distinct(before.value, after.value))
    if _differ(summary, "before", after, before) is False:
        paired = judged(summary, "before", FORWARD_KL.key)
        why = "the 95 % interval of the difference holds 0" if paired else "the 95 % intervals overlap"
        return f"{KL} did not clearly move: {span}, and {why}"
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


def _text_alone(summary: Summary) -> str:
    """What is known of a student whose teacher gives no distribution: how likely it finds the teacher's answers."""
    before, after = _of(summary, "before", PPL), _of(summary, "after", PPL)
    start = "the teacher gives text alone, so its distribution is not compared"
    if before.value is None or after.value is None:
        return start
    was, now = distinct(before.value, after.value)
    moved = {"better": "fell", "worse": "rose", "even": "did not clearly move", "": "went"}
    paired = judged(summary, "before", PPL.key)
    return f"{start}; the student's perplexity on held-out answers {moved[paired]} from {was} to {now}"


def _control(summary: Summary) -> str:
    """The control's distance, and every figure judged prompt by prompt."""
    control, after = _of(summary, "control").value, _of(summary, "after").value
    text = ""
    if control is not None and after is not None:
        text = f" The control student reached {distinct(control, after)[0]} nats per token."
    groups = against_control(summary)
    said = [
        f"{words} in {listed(groups[judgement])}" for judgement, words in AGAINST.items() if groups[judgement]
    ]
    if not said:
        return text
    return f"{text} Prompt by prompt against the control, the distilled student is {'; '.join(said)}."


def against_control(summary: Summary) -> dict[str, list[str]]:
    """The figures that both students have, by what their paired interval says; with both values where the control
    is ahead."""
    groups: dict[str, list[str]] = {judgement: [] for judgement in AGAINST}
    if not summary.get("control"):
        return groups
    for key in described(summary, *RESULTS, "behaviour"):
        control, after = (of_role(summary, role, key) for role in ("control", "after"))
        if control.value is None or after.value is None or not after.better:
            continue
        ahead = control.value != after.value and (control.value > after.value) == (after.better == "up")
        values = f" ({pair(after)[0]} against {pair(control)[0]})" if ahead else ""
        groups[judged(summary, "control", key)].append(after.label + values)
    return groups


def of_role(summary: Summary, role: str, key: str) -> Figure:
    """A model's figure, whichever block of the summary it is in."""
    if described(summary).get(key, {}).get("place") == "behaviour":
        return read(summary, (summary.get("behaviour") or {}).get(role), key)
    return read(summary, summary.get(role), key)


def listed(words: Sequence[str]) -> str:
    """Words joined by commas and a last "and"."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


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
    if _differ(summary, "control", after, control) is False:
        return "Distilled and control student are not known to differ in their distance from the teacher."
    return ""


def _setbacks_of_stages(summary: Summary) -> Iterator[str]:
    """What a stage of several made clearly worse, prompt by prompt."""
    for stage in summary.get("by_stage") or ():
        for key, about in described(summary, *RESULTS).items():
            if judgement(read(summary, stage.get("difference"), key)) == "worse":
                before, after = (pair(read(summary, stage[side], key))[0] for side in ("before", "after"))
                yield f"{stage['stage']} made {about['label']} worse: {before} before it, {after} after it."


def _setbacks(summary: Summary) -> Iterator[str]:
    for key in described(summary, *RESULTS):
        before, after = (read(summary, summary.get(role), key) for role in ("before", "after"))
        if key == FORWARD_KL.key and _equal(before):
            continue  # of a student that began as its teacher, any training is one away from it
        if before.value is None or after.value is None or not before.better:
            continue
        worse = (after.value > before.value) != (before.better == "up")
        if worse and _differ(summary, "before", after, before):
            was, now = pair(before)[0], pair(after)[0]
            yield f"{before.label} got worse in training: {was} before, {now} after."


def _behaviour(summary: Summary) -> Iterator[str]:
    """Where the student's own text is clearly worse than the teacher's."""
    blocks = summary.get("behaviour") or {}
    for key in described(summary, "behaviour"):
        teacher, student = (read(summary, blocks.get(role), key) for role in ("teacher", "after"))
        if teacher.value is None or student.value is None or not student.better:
            continue
        worse = (student.value > teacher.value) != (student.better == "up")
        if worse and _differ(summary, "teacher", student, teacher):
            theirs, ours = pair(teacher)[0], pair(student)[0]
            yield f"{student.label}: {ours}, clearly worse than the teacher's {theirs}."
