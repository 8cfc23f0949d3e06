"""The table of the on-policy study: a row a method, intervals by prompts, the spread of seeds apart."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from potstill.evaluate import stats
from potstill.types import Figure

BEGIN, END = "<!-- onpolicy-study:begin -->", "<!-- onpolicy-study:end -->"
FIGURES = (
    ("forward_kl", "KL(teacher ‖ student)", 3),
    ("own_reverse_kl", "KL(student ‖ teacher), own text", 3),
    ("rouge_l", "ROUGE-L", 3),
    ("repetition", "repeated 4-grams", 3),
    ("stop_rate", "stops", 2),
)
Run = Mapping[str, Any]


def figure(name: str, scores: Mapping[str, Any]) -> Figure:
    """One figure of one student, with its prompts."""
    return stats.ratio(*scores[name], figure=Figure(name))


def sum_of_kls(scores: Mapping[str, Any]) -> float:
    """What a screen chooses by: both KLs count alike, whichever of them a method minimises."""
    values = [figure(name, scores).value for name in ("forward_kl", "own_reverse_kl")]
    return sum(float("inf") if value is None else value for value in values)


def table(warm: Sequence[Run], arms: Mapping[str, Sequence[Run]], screens: Mapping[str, Run]) -> str:
    """The scores, then what each arm did in its time, how the two KLs fell, and what screens saw, as Markdown."""
    header = ["method", "learning rate", *(label for _, label, _ in FIGURES)]
    lines = [["warm start", "", *_scores(warm)]]
    lines += [[name, f"{runs[0]['rate']:g}", *_scores(runs)] for name, runs in arms.items()]
    costs = [[name, *_costs(runs)] for name, runs in arms.items()]
    names = ["method", "steps", "tokens trained on", "tokens written", "share of time writing", "seconds"]
    curves = [[name, *_curve(runs)] for name, runs in arms.items()]
    marks = len(curves[0]) - 1 if curves else 0
    quarters = ["method", *(f"{mark + 1}/{marks} of the time" for mark in range(marks))]
    rates = sorted({one["rate"] for screen in screens.values() for one in screen["tried"]})
    tried = [[name, *_tried(screen, rates)] for name, screen in screens.items()]
    return "\n\n".join(
        [
            _markdown(header, lines),
            "Value [95 % interval by resampling prompts] (least to most of the seeds).",
            _markdown(names, costs),
            "KL(teacher ‖ student) and KL(student ‖ teacher) on the way, on the first prompts, mean of the seeds:",
            _markdown(quarters, curves),
            "Sum of both KLs behind a screen, on its own prompts, at each learning rate:",
            _markdown(["method", *(f"{rate:g}" for rate in rates)], tried),
        ]
    )


def ended(answers: Path) -> str:
    """How many of the teacher's greedy answers end before the longest ones do, which are cut."""
    lengths = [json.loads(line)["greedy_tokens"] for line in answers.read_text(encoding="utf-8").splitlines()]
    count = sum(length < max(lengths) for length in lengths)
    return (
        f"The teacher's own greedy answers: {count} of {len(lengths)} have fewer than {max(lengths)} tokens."
    )


def _tried(screen: Run, rates: Sequence[float]) -> list[str]:
    """What a screen saw at these rates."""
    sums = {one["rate"]: one["sum_of_kls"] for one in screen["tried"]}
    return [f"{sums[rate]:.3f}" if rate in sums else "–" for rate in rates]


def _scores(runs: Sequence[Run]) -> list[str]:
    return [
        _cell(pooled(name, runs), [figure(name, run["scores"]) for run in runs], digits)
        for name, _, digits in FIGURES
    ]


def pooled(name: str, runs: Sequence[Run]) -> Figure:
    """One figure of all seeds together, whose interval draws the prompts that they share."""
    columns = [run["scores"][name] for run in runs]
    tops, bottoms = (
        [sum(values) for values in zip(*side, strict=True)] for side in zip(*columns, strict=True)
    )
    return stats.ratio(tops, bottoms, figure=Figure(name))


def _cell(whole: Figure, seeds: Sequence[Figure], digits: int) -> str:
    if whole.value is None:
        return "–"
    text = f"{whole.value:.{digits}f} [{whole.low:.{digits}f}, {whole.high:.{digits}f}]"
    values = [one.value for one in seeds if one.value is not None]
    if len(values) < 2:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _costs(runs: Sequence[Run]) -> list[str]:
    """What the arms did, as means of the seeds."""
    steps, tokens, written, seconds = (
        statistics.mean(run[name] for run in runs)
        for name in ("steps", "tokens", "written_tokens", "seconds")
    )
    writing = statistics.mean(run["generation_seconds"] / run["seconds"] for run in runs)
    return [f"{steps:.0f}", f"{tokens:.0f}", f"{written:.0f}", f"{writing:.0%}", f"{seconds:.0f}"]


def _curve(runs: Sequence[Run]) -> list[str]:
    """Both KLs at every mark of time."""
    marks = zip(*(run["curve"] for run in runs), strict=True)
    return [" / ".join(_mean_at(name, mark) for name in ("forward_kl", "own_reverse_kl")) for mark in marks]


def _mean_at(name: str, scores: Sequence[Mapping[str, Any]]) -> str:
    values = [figure(name, one).value for one in scores]
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.3f}" if known else "–"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def keep(docs: Path, table: str, command: str) -> None:
    """Put the command and the table between their markers on a page.

    Raises:
        SystemExit: the page has no markers.
    """
    page = docs.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{docs} has no {BEGIN} … {END}: put both lines where the table belongs")
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    docs.write_text(f"{before}{BEGIN}\n```\n{command}\n```\n\n{table}\n{END}{after}", encoding="utf-8")
