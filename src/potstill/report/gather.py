"""From a run's artifacts to `summary.json` and the page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.data import split
from potstill.report import model as page_model
from potstill.report import page
from potstill.report.metrics import Role
from potstill.report.model import (
    Absent,
    Answer,
    Behaviour,
    Curve,
    FunnelStep,
    Overlap,
    Sample,
    Sections,
    StageCost,
)
from potstill.report.numbers import read
from potstill.report.summary import Outcome as Outcome
from potstill.report.summary import evaluation_of, summarise
from potstill.store import artifacts
from potstill.store.artifacts import Artifact
from potstill.store.folder import RECIPE, RunDir

_BEHAVIOUR = ("stop_rate", "length_ratio", "repetition", "unfinished_reasoning")
ROLES: tuple[Role, ...] = ("teacher", "before", "after", "control")


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
            page_file.unlink(missing_ok=True)  # it tells of another recipe
    if outcome.student is not None:
        outputs["student"] = folder.path / "student"
    verdict = "finished: " + ", ".join(outcome.stages)
    if outcome.evaluation is not None:
        report = page_model.from_run(
            summary,
            curves(outcome.stages),
            samples(outcome.evaluation),
            (folder.path / RECIPE).read_text(encoding="utf-8"),
            sections(folder, outcome),
        )
        outputs["report"] = page.write(report, page_file)
        verdict = report.verdict
    return Published(summary, verdict, outputs)


def _earlier(folder: RunDir) -> dict[str, Any]:
    try:
        return json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def curves(stages: Mapping[str, Artifact]) -> list[Curve]:
    """Training loss and validation of every training stage, from its metrics."""
    found = []
    for name, artifact in stages.items():
        if artifact.manifest["stage"] != "train":
            continue
        events = _lines(artifact.path / "metrics.jsonl")
        resumes = tuple(float(e["step"]) for e in events if e["event"] == "resumed")
        training = tuple((float(e["step"]), e["loss"]) for e in events if e["event"] == "step")
        validation = tuple((float(e["step"]), e["loss"]) for e in events if e["event"] == "validation")
        found.append(Curve(name, "training", "nats per token", training, resumes=resumes))
        if validation:
            found.append(Curve(name, "validation", "nats per token", validation, dots=True))
    return found


def samples(evaluation: Artifact) -> list[Sample]:
    """Held-out answers side by side, families in turn, those that training never saw first."""
    lines = _lines(evaluation.path / "samples.jsonl")
    lines.sort(key=lambda line: not line["unseen"])
    by_family: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_family.setdefault(line["family"], []).append(line)
    ordered = [
        line for turn in range(max(map(len, by_family.values()), default=0))
        for family in by_family.values() for line in family[turn : turn + 1]
    ]  # fmt: skip
    return [
        Sample(
            prompt=line["prompt"],
            answers=tuple(
                Answer(role, line["answers"][role]["text"], line["answers"][role]["stopped"])
                for role in ROLES
                if role in line["answers"]
            ),
            family=line["family"],
            unseen_family=line["unseen"],
        )
        for line in ordered[:8]
    ]


def sections(folder: RunDir, outcome: Outcome) -> Sections:
    """The optional parts of the page."""
    data = outcome.data
    overlap: Overlap | Absent = Absent("There are no held-out rows to compare.")
    if data.heldout:
        seen = split.overlap(data.trained_on, data.heldout)
        overlap = Overlap(
            train=len(data.trained_on),
            heldout=seen.of,
            exact=seen.exact,
            near=seen.near,
            ngram=seen.gram,
            ngram_size=split.GRAM,
            near_rule=f"Jaccard index of the word sets at least {split.NEAR}",
        )
    lengths = {name: values for name, values in outcome.lengths.items() if values}
    return Sections(
        seeds=(outcome.recipe.seed,),
        overlap=overlap,
        funnel=_funnel(outcome),
        lengths=(page_model.binned("Length of rows", "tokens", lengths),) if lengths else Absent(),
        behaviour=_behaviour(outcome.evaluation),
        costs=tuple(_cost(name, artifact, outcome.reused) for name, artifact in outcome.stages.items()),
        defaults=tuple(page_model.Default(d.path, _shown(d.value), d.source) for d in outcome.defaults),
        commands=(f"potstill run {shlex.quote(str(folder.path))}",),
        notes=(
            f"Rows: {data.shape}. Held out: {data.source}. {len(data.validation)} training rows only choose "
            "the best weights; no held-out row does.",
            "Intervals resample prompts, not tokens. Answers for ROUGE-L are greedy; its references are the "
            "answers in the held-out data.",
        ),
    )


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _funnel(outcome: Outcome) -> tuple[FunnelStep, ...]:
    read_counts = outcome.data.funnel
    dropped = tuple(
        (k, read_counts[k]) for k in ("blank", "broken", "empty", "duplicate") if read_counts.get(k)
    )
    steps = [FunnelStep("rows read", read_counts["kept"], dropped)]
    data = outcome.data
    steps.append(
        FunnelStep(
            "for training",
            len(data.train),
            (
                ("kept for validation", len(data.validation)),
                ("held out", read_counts["kept"] - len(data.train) - len(data.validation)),
            ),
        )
    )
    reasons = tuple(
        (k, v)
        for k, v in outcome.funnel.items()
        if v and k not in ("rows", "kept") and not k.startswith("measured ")
    )
    steps.append(FunnelStep("as examples", len(outcome.lengths.get("train", ())), reasons))
    return tuple(steps)


def _behaviour(evaluation: Artifact | None) -> tuple[Behaviour, ...] | Absent:
    found = evaluation_of(evaluation).get("behaviour", {})
    if not found:
        return Absent("Behaviour of free-running text was not measured: evaluate rouge_l or speed.")
    return tuple(
        Behaviour(role, *(read(found[role], name) for name in _BEHAVIOUR)) for role in ROLES if role in found
    )


def _cost(name: str, artifact: Artifact, reused: Sequence[str]) -> StageCost:
    facts = artifact.facts
    return StageCost(
        stage=name,
        seconds=facts["seconds"],
        tokens=facts.get("tokens"),
        peak_rss_bytes=facts["peak_rss_bytes"],
        note="taken from the store" if name in reused else "",
    )
