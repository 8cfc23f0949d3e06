"""From a run's artifacts to its record, and from the record to `summary.json` and the page."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.data import split
from potstill.data.prompts import MEASURED, VALIDATION
from potstill.errors import ArtifactError
from potstill.recipe.recipe import Recipe, dump_yaml
from potstill.report import card, on_policy, page, provenance, record
from potstill.report.content import Content
from potstill.report.curves import Curve
from potstill.report.figures import Summary
from potstill.report.record import Record
from potstill.report.summary import Outcome, summarise
from potstill.report.verdict import verdict
from potstill.store import disk
from potstill.store.artifacts import Artifact
from potstill.store.folder import RECIPE, RunDir
from potstill.store.lines import read_lines

SUMMARY, PAGE = "summary.json", "report.html"
PRIVATE = {key: Recipe.model_fields[key].default for key in ("runs", "trackers")}
KEPT = ("rows", "examples", "split", "reasoning")  # counts of `data.examples.Encoded` that are no loss


def publish(folder: RunDir, outcome: Outcome) -> tuple[Summary, str, dict[str, Path]]:
    """Write summary.json and the run's record, report.html once something was evaluated, and the student with its card.

    A part of a run that was finished before leaves them as they are: they say more.

    Returns:
        the summary, the verdict and what was written, by name.
    """
    state, now = outcome.state, summarise(outcome)
    summary: Summary = now
    before = record.read_or_warn(folder)
    if before is not None and _holds(before, summary) and state.evaluation is None:
        _require_unchanged(folder, before)
        summary, outputs = before.summary, {"summary": folder.path / SUMMARY, "report": folder.path / PAGE}
    else:
        earlier = _written(folder.path / SUMMARY) if before is None else before.summary
        if earlier.get("artifacts") == now["artifacts"]:
            # The figures are of that day, that machine and those packages.
            summary = now | {
                name: earlier[name] for name in ("made", "versions") if isinstance(earlier.get(name), dict)
            }
        recipe = (folder.path / RECIPE).read_text(encoding="utf-8")
        shown = None if state.evaluation is None else content(outcome, summary)
        complete = all(stage.name in state.artifacts for stage in outcome.recipe.stages)
        record.write(folder, Record(summary, recipe, complete, shown, prompts(outcome.state.evaluation)))
        written = record.read(folder)
        assert written is not None
        outputs = _show(folder, written)
    if state.student is not None:
        text = card.render(outcome, summary if _of_same_student(outcome, summary, now) else now)
        outputs["student"] = folder.export("student", state.student.path / "student", {card.CARD: text})
    said = verdict(summary) if state.evaluation is not None else "finished: " + ", ".join(state.artifacts)
    return summary, said, outputs


def republish(folder: RunDir) -> tuple[Summary, str, dict[str, Path]]:
    """`publish` from the run's record alone.

    Raises:
        ArtifactError: there is none of the recipe in the folder, or it is damaged.
    """
    made = finished(folder)
    # A folder may have been copied or renamed since.
    summary = {**made.summary, "name": folder.path.resolve().name}
    shown = None if made.content is None else replace(made.content, summary=summary)
    said = "finished" if shown is None else verdict(summary)
    return summary, said, _show(folder, replace(made, summary=summary, content=shown))


def finished(folder: RunDir) -> Record:
    """The record of a run that is finished.

    Raises:
        ArtifactError: there is none of the recipe in the folder, or it is damaged.
    """
    made = record.read(folder)
    if (
        made is None
        or not made.complete
        or made.recipe != (folder.path / RECIPE).read_text("utf-8", "replace")
    ):
        raise ArtifactError(
            f"the run in {folder.path} is not finished with the recipe in its folder.",
            fix="Go on with potstill run and the run's folder.",
        )
    return made


def _show(folder: RunDir, made: Record) -> dict[str, Path]:
    """Write the summary and the page of a record; without an evaluation a page belongs to another recipe."""
    outputs = {"summary": folder.path / SUMMARY}
    disk.write_json(outputs["summary"], made.summary)
    if made.content is not None:
        outputs["report"] = page.write(made.content, folder.path / PAGE)
    elif (folder.path / PAGE).is_file():
        (folder.path / PAGE).unlink()
    return outputs


def _holds(before: Record, summary: Summary) -> bool:
    """Whether an evaluated run left the artifacts of this summary too."""
    return (
        before.content is not None
        and summary["artifacts"].items() <= before.summary.get("artifacts", {}).items()
    )


def _of_same_student(outcome: Outcome, summary: Summary, now: Summary) -> bool:
    """Whether a summary that may say more than `now` describes the same student: nothing trained it further."""
    more = summary["artifacts"].keys() - now["artifacts"].keys()
    return more <= {stage.name for stage in outcome.recipe.stages if stage.measures or stage.from_untrained}


def _require_unchanged(folder: RunDir, before: Record) -> None:
    """Compare the files of a run that stays as it is with its record; what is missing is written again.

    Raises:
        ArtifactError: the summary is not as the run wrote it.
    """
    file = folder.path / SUMMARY
    if not file.is_file() or not (folder.path / PAGE).is_file():
        _show(folder, before)
    if _written(file) != before.summary:
        fix = f"potstill report {shlex.quote(str(folder.path))} writes it again."
        raise ArtifactError(f"{file} is not as it was written.", fix=fix)


def content(outcome: Outcome, summary: Summary) -> Content:
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
        on_policy=on_policy.curves(stages),
        samples=samples(outcome.state.evaluation),
        # Where runs are kept and tracked is the reader's own business, and may name a user.
        recipe=dump_yaml(outcome.recipe.model_copy(update=PRIVATE)),
        overlap=split.overlap(data.trained_on, data.heldout) if data.heldout else None,
        trained_prompts=len(data.trained_on),
        funnel=funnel(outcome),
        lengths=lengths,
        costs={
            name: {**artifact.facts, "note": "taken from the store" if artifact.reused else ""}
            for name, artifact in stages.items()
        },
        defaults=outcome.state.defaults,
        command="potstill run recipe.yaml",
        notes=(
            f"Rows: {data.shape}. Held out: {data.source}. {len(data.validation)} training rows only choose "
            "the best weights; no held-out row does.",
            *origins(outcome.state),
            *captures(outcome.state),
            *provenance.sentences(outcome),
            *outcome.notes,
        ),
    )


def origins(state: Any) -> Iterator[str]:
    """Whose answers the models were scored on, and whose their own texts were compared with."""
    facts = state.evaluation.facts
    scored = "in the held-out data" if state.answers is None else "that the teacher wrote to held-out prompts"
    yield f"Intervals resample prompts, not tokens. Token by token, models are scored on the answers {scored}."
    kinds = {"in the data (gold)": facts["gold"], "of the teacher": facts["written"]}
    references = " and, apart from these, ".join(f"{n} answers {kind}" for kind, n in kinds.items() if n)
    if references:
        yield f"Answers in text are greedy; they are compared with {references}."


def captures(state: Any) -> Iterator[str]:
    """What was kept of the teacher's word, how far it is from that, and of how many rows."""
    for name, artifact in state.artifacts.items():
        facts = artifact.facts
        if artifact.manifest["stage"] != "capture":
            continue
        measured = facts["measured"]
        far = ""
        if "kl_mean" in measured:
            far = f", {measured['kl_mean']:.2g} nats from it on average and {measured['kl_p99']:.2g} at the 99th percentile"
        yield (
            f"{name}: later stages read what the teacher said from a cache: {facts['signal']}, "
            f"{facts['bytes_per_token']:.0f} bytes a scored token{far}; {facts['rows']} of "
            f"{facts['planned_rows']} rows."
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
            rows = artifact.facts.get("validation_rows")
            label = "validation" if rows is None else f"validation ({rows} row{'s' * (rows != 1)})"
            result.append(Curve(name, label, validation, dots=True))
    return result


def samples(evaluation: Artifact) -> list[dict[str, Any]]:
    """Held-out answers side by side, families in turn, those that training never saw first."""
    by_family: dict[str, list[dict[str, Any]]] = {}
    for line in sorted(read_lines(evaluation.path / "samples.jsonl"), key=lambda line: not line["unseen"]):
        by_family.setdefault(line["family"], []).append(line)
    turns = itertools.zip_longest(*by_family.values())
    return [line for turn in turns for line in turn if line is not None]


def prompts(evaluation: Artifact | None) -> dict[str, Any]:
    """The trained student's figures prompt by prompt."""
    return {} if evaluation is None else _written(evaluation.path / "prompts.json")


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
        if count and reason not in KEPT and not reason.startswith((MEASURED, VALIDATION))
    }
    return [
        ("rows read", counts["kept"], unreadable),
        ("for training", len(data.train), split_off),
        # Rows too: a conversation may be several examples.
        ("as examples", len({example.row_id for example in train.examples}), left_out),
    ]
