"""How training on the student's own text went: its figures as curves, first and last values, alarms and stops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from potstill.report.curves import UNIT, Curve
from potstill.store.artifacts import Artifact
from potstill.store.lines import read_lines

Event = Mapping[str, Any]
METRICS = "metrics.jsonl"
WINDOW = 20  # steps that make a first or a last value
COUNTS = ("written", "written_tokens", "generation_seconds", "scoring_seconds")


@dataclass(frozen=True)
class Shown:
    """One chart: its title, the unit of its values, and the figures of a step that it draws, with their names."""

    title: str
    unit: str
    lines: Mapping[str, str]


CHARTS = (
    Shown(
        "repetition, truncation and shared likely ids",
        "share",
        {"repetition": "repeated", "truncated": "cut", "overlap": "shared ids"},
    ),
    Shown("length of rollouts", "tokens", {"rollout_length": "rollout"}),
    Shown(
        "entropy on the student's text", UNIT, {"student_entropy": "student", "teacher_entropy": "teacher"}
    ),
    Shown(
        "KL(student ‖ teacher), first and second half of answers",
        UNIT,
        {"early_kl": "early", "late_kl": "late"},
    ),
)
FIGURES = (*(name for chart in CHARTS for name in chart.lines), "empty")


def curves(stages: Mapping[str, Artifact]) -> list[Curve]:
    """The figures of every training stage in which the student wrote."""
    return [
        Curve(name, label, points, unit=chart.unit, chart=chart.title)
        for name, steps in _steps(stages)
        for chart in CHARTS
        for figure, label in chart.lines.items()
        if (points := tuple((float(step["step"]), float(step[figure])) for step in steps if figure in step))
    ]


def summary(stages: Mapping[str, Artifact]) -> dict[str, Any]:
    """By stage: counts, the first and last value of each figure, and what guards said; {} without rollouts."""
    return {name: _summary(_events(stages[name]), steps) for name, steps in _steps(stages)}


def stops(summary: Mapping[str, Any]) -> Iterator[str]:
    """One sentence on each stop by a guard, of a training that went on behind it."""
    for stage, block in (summary.get("on_policy") or {}).items():
        for stop in block["stops"]:
            yield (
                f"A guard stopped {stage} at step {stop['step']} ({stop['seen']}); it went on under other limits."
            )


def alarms(summary: Mapping[str, Any]) -> Iterator[str]:
    """One sentence on each alarm."""
    for stage, block in (summary.get("on_policy") or {}).items():
        for alarm in block["alarms"]:
            yield f"{stage}, step {alarm['step']}: {alarm['seen']}."


def _events(artifact: Artifact) -> Sequence[Event]:
    if artifact.manifest["stage"] != "train":
        return ()
    return read_lines(artifact.path / METRICS)


def _steps(stages: Mapping[str, Artifact]) -> Iterator[tuple[str, list[Event]]]:
    """The steps on rollouts of each stage that has any."""
    for name, artifact in stages.items():
        if steps := [e for e in _events(artifact) if e["event"] == "step" and e.get("on_policy")]:
            yield name, steps


def _summary(events: Sequence[Event], steps: Sequence[Event]) -> dict[str, Any]:
    block: dict[str, Any] = {"steps": len(steps)}
    block |= {name: sum(step.get(name, 0) for step in steps) for name in COUNTS}
    for figure in FIGURES:
        if values := [step[figure] for step in steps if figure in step]:
            block[figure] = {"first": fmean(values[:WINDOW]), "last": fmean(values[-WINDOW:])}
    said = ("step", "guard", "value", "limit", "seen")
    for kind in ("alarm", "stop"):
        block[f"{kind}s"] = [{k: e[k] for k in said} for e in events if e["event"] == kind]
    if start := next((e for e in events if e["event"] == "cold_start"), None):
        block["start"] = {
            name: start[name] for name in start if name not in ("event", "step", "peak_rss_bytes")
        }
    return block
