"""From a run's artifacts to `summary.json` and the page."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.data import split
from potstill.errors import ArtifactError
from potstill.report import page
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.summary import Outcome, summarise
from potstill.report.verdict import verdict
from potstill.store import artifacts
from potstill.store.artifacts import Artifact
from potstill.store.folder import RECIPE, RunDir
from potstill.store.lines import read_lines

KEPT = ("rows", "examples", "split", "reasoning")  # counts of `data.examples.Encoded` that are no loss


def publish(folder: RunDir, outcome: Outcome) -> tuple[Mapping[str, Any], str, dict[str, Path]]:
    """Write summary.json, and report.html once something was evaluated.

    A part of a run that was finished before leaves both as they are: they say more.

    Returns:
        the summary, the verdict and what was written, by name.
    """
    state, summary = outcome.state, summarise(outcome)
    page_file, summary_file = folder.path / "report.html", folder.path / "summary.json"
    outputs = {"summary": summary_file}
    partial = state.evaluation is None and page_file.is_file()
    before = _written(summary_file)
    earlier = _earlier(folder, summary_file) if partial else {}
    if before.get("artifacts") == summary["artifacts"] and "made" in before:
        summary["made"] = before["made"]  # the figures are of that day and that machine
    if summary["artifacts"].items() <= earlier.get("artifacts", {}).items():
        summary = earlier
        outputs["report"] = page_file
    else:
        artifacts.write_json(summary_file, summary)
        folder.update({"summary_sha256": artifacts.file_hash(summary_file)})
        if state.evaluation is None:
            page_file.unlink(missing_ok=True)  # it belongs to another recipe
    if state.student is not None:
        outputs["student"] = folder.path / "student"
    if state.evaluation is None:
        return summary, "finished: " + ", ".join(state.artifacts), outputs
    outputs["report"] = page.write(content(folder, outcome, summary), page_file)
    return summary, verdict(summary), outputs


def content(folder: RunDir, outcome: Outcome, summary: Mapping[str, Any]) -> Content:
    """What the page shows of a run that was evaluated."""
    data, stages = outcome.data, outcome.state.artifacts
    lengths = {
        name: [len(e.input_ids) for e in rows.examples]
        for name, rows in outcome.examples.items()
        if rows.examples
    }
    return Content(
        summary,
        curves=curves(stages),
        samples=samples(outcome.state.evaluation),
        recipe=(folder.path / RECIPE).read_text(encoding="utf-8"),
        overlap=split.overlap(data.trained_on, data.heldout) if data.heldout else None,
        trained_prompts=len(data.trained_on),
        funnel=funnel(outcome),
        lengths=lengths,
        costs={
            name: {**artifact.facts, "note": "taken from the store" if artifact.reused else ""}
            for name, artifact in stages.items()
        },
        defaults=outcome.state.defaults,
        command=f"potstill run {shlex.quote(str(folder.path))}",
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
        result.append(Curve(name, "training", training, resumes=resumes))
        if validation:
            result.append(Curve(name, "validation", validation, dots=True))
    return result


def samples(evaluation: Artifact) -> list[dict[str, Any]]:
    """Held-out answers side by side, families in turn, those that training never saw first."""
    by_family: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(read_lines(evaluation.path / "samples.jsonl"), key=lambda line: not line["unseen"]):
        by_family.setdefault(line["family"], []).append(line)
    turns = itertools.zip_longest(*by_family.values())
    return [line for turn in turns for line in turn if line is not None]


def _earlier(folder: RunDir, summary_file: Path) -> dict[str, Any]:
    """The summary of an earlier run in this folder, {} where there is none.

    Raises:
        ArtifactError: it is not as that run wrote it.
    """
    if not summary_file.is_file():
        return {}
    written = folder.state().get("summary_sha256")
    if written is not None and artifacts.file_hash(summary_file) != written:
        fix = f"potstill report {shlex.quote(str(folder.path))} writes it again."
        raise ArtifactError(f"{summary_file} is not as it was written: its hash differs.", fix=fix)
    return _written(summary_file)


def _written(summary_file: Path) -> dict[str, Any]:
    """What a file holds, {} where it is none or unreadable."""
    try:
        return dict(json.loads(summary_file.read_text(encoding="utf-8")).items())
    except (OSError, ValueError, AttributeError):
        return {}


def funnel(outcome: Outcome) -> list[tuple[str, int, dict[str, int]]]:
    """The rows left after each step, and what was dropped in it, by reason."""
    data, counts, train = outcome.data, outcome.data.funnel, outcome.examples["train"]
    unreadable = {k: counts[k] for k in ("blank", "broken", "empty", "duplicate") if counts.get(k)}
    split_off = {
        "kept for validation": len(data.validation),
        "held out": counts["kept"] - len(data.train) - len(data.validation),
    }
    left_out = {
        reason: count
        for reason, count in {**outcome.state.left_out, **train.funnel}.items()
        if count and reason not in KEPT and not reason.startswith("measured ")
    }
    return [
        ("rows read", counts["kept"], unreadable),
        ("for training", len(data.train), split_off),
        # Rows too: a conversation may be several examples.
        ("as examples", len({example.row_id for example in train.examples}), left_out),
    ]
