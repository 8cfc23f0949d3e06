"""From a run's artifacts to `summary.json` and the page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.data import split
from potstill.report import page
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.summary import Outcome as Outcome
from potstill.report.summary import summarise
from potstill.report.verdict import verdict
from potstill.store import artifacts
from potstill.store.artifacts import Artifact
from potstill.store.folder import RECIPE, RunDir
from potstill.store.lines import read_lines

MOST_SAMPLES = 8


@dataclass(frozen=True)
class Published:
    """What was written, and the verdict."""

    summary: Mapping[str, Any]
    verdict: str
    outputs: dict[str, Path] = field(default_factory=dict)


def publish(folder: RunDir, outcome: Outcome) -> Published:
    """Write summary.json, and report.html once something was evaluated.

    A part of a run that was finished before leaves both as they are: they say more.
    """
    summary, page_file = summarise(outcome), folder.path / "report.html"
    outputs = {"summary": folder.path / "summary.json"}
    earlier = _earlier(folder) if outcome.evaluation is None and page_file.is_file() else {}
    if summary["artifacts"].items() <= earlier.get("artifacts", {}).items():
        summary = earlier
        outputs["report"] = page_file
    else:
        artifacts.write_json(outputs["summary"], summary)
        if outcome.evaluation is None:
            page_file.unlink(missing_ok=True)  # it belongs to another recipe
    if outcome.student is not None:
        outputs["student"] = folder.path / "student"
    sentence = "finished: " + ", ".join(outcome.stages)
    if outcome.evaluation is not None:
        outputs["report"] = page.write(content(folder, outcome, summary), page_file)
        sentence = verdict(summary)
    return Published(summary, sentence, outputs)


def content(folder: RunDir, outcome: Outcome, summary: Mapping[str, Any]) -> Content:
    """What the page shows of a run that was evaluated."""
    data = outcome.data
    assert outcome.evaluation is not None
    return Content(
        summary,
        curves=curves(outcome.stages),
        samples=samples(outcome.evaluation),
        recipe=(folder.path / RECIPE).read_text(encoding="utf-8"),
        seeds=(outcome.recipe.seed,),
        overlap=split.overlap(data.trained_on, data.heldout) if data.heldout else None,
        trained_prompts=len(data.trained_on),
        funnel=_funnel(outcome),
        lengths={name: values for name, values in outcome.lengths.items() if values},
        costs={
            name: {**artifact.facts, "note": "taken from the store" if name in outcome.reused else ""}
            for name, artifact in outcome.stages.items()
        },
        defaults=outcome.defaults,
        commands=(f"potstill run {shlex.quote(str(folder.path))}",),
        notes=(
            f"Rows: {data.shape}. Held out: {data.source}. {len(data.validation)} training rows only choose "
            "the best weights; no held-out row does.",
            "Intervals resample prompts, not tokens. Answers for ROUGE-L are greedy; its references are the "
            "answers in the held-out data.",
        ),
    )


def curves(stages: Mapping[str, Artifact]) -> list[Curve]:
    """Training loss and validation of every training stage, from its metrics."""
    result = []
    for name, artifact in stages.items():
        if artifact.manifest["stage"] != "train":
            continue
        events = read_lines(artifact.path / "metrics.jsonl")
        resumes = tuple(float(e["step"]) for e in events if e["event"] == "resumed")
        training, validation = (
            tuple((float(e["step"]), e["loss"]) for e in events if e["event"] == event)
            for event in ("step", "validation")
        )
        result.append(Curve(name, "training", "nats per token", training, resumes=resumes))
        if validation:
            result.append(Curve(name, "validation", "nats per token", validation, dots=True))
    return result


def samples(evaluation: Artifact) -> list[dict[str, Any]]:
    """Held-out answers side by side, families in turn, those that training never saw first."""
    by_family: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(read_lines(evaluation.path / "samples.jsonl"), key=lambda line: not line["unseen"]):
        by_family.setdefault(line["family"], []).append(line)
    turns = range(max(map(len, by_family.values()), default=0))
    ordered = [line for turn in turns for family in by_family.values() for line in family[turn : turn + 1]]
    return ordered[:MOST_SAMPLES]


def _earlier(folder: RunDir) -> dict[str, Any]:
    try:
        return json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _funnel(outcome: Outcome) -> list[tuple[str, int, dict[str, int]]]:
    data, counts = outcome.data, outcome.data.funnel
    split_off = {
        "kept for validation": len(data.validation),
        "held out": counts["kept"] - len(data.train) - len(data.validation),
    }
    unreadable = {k: counts[k] for k in ("blank", "broken", "empty", "duplicate") if counts.get(k)}
    left_out = {
        reason: count
        for reason, count in outcome.funnel.items()
        if count and reason not in ("rows", "kept") and not reason.startswith("measured ")
    }
    return [
        ("rows read", counts["kept"], unreadable),
        ("for training", len(data.train), split_off),
        ("as examples", len(outcome.lengths.get("train", ())), left_out),
    ]
