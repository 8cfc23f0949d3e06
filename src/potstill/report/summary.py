"""`summary.json`: a run's figures for programs, written and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from potstill.data.dataset import Dataset
from potstill.data.row import Row
from potstill.evaluate.speed import SPEED
from potstill.recipe.recipe import Recipe
from potstill.report import on_policy, provenance
from potstill.report.figures import MEASURED, NOT_MEASURED, RESULTS, about
from potstill.report.machine import machine, versions
from potstill.report.money import money
from potstill.store.artifacts import Artifact
from potstill.types import Figure

OTHERS = ("behaviour", "cost")
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes of a number
TRAIN = ("steps", "tokens", "tokens_per_second", "seconds", "peak_rss_bytes")
Table = Mapping[str, Figure]


@dataclass(frozen=True)
class Outcome:
    """What a run left."""

    recipe: Recipe
    data: Dataset
    teacher: Any
    state: Any  # the State behind the last stage
    examples: Mapping[str, Any]  # of each split: its examples, and how many rows were left out by reason
    metrics: Mapping[str, Sequence[Figure]]  # the figures of each metric that a recipe can name
    notes: Sequence[str] = ()  # what the run said of its inputs
    licences: Mapping[str, str] = field(default_factory=dict)  # of teacher and student, where they say it
    mix: Sequence[Any] = ()  # what was taken of each source, where several are mixed
    base_model: str = ""  # what the student's weights were made from, where that is a model of the hub


def summarise(outcome: Outcome) -> dict[str, Any]:
    """summary.json: a value that does not apply is null with a reason beside it."""
    state, evaluation = outcome.state, dict[str, Any]()
    if state.evaluation is not None:
        evaluation = json.loads((state.evaluation.path / "evaluation.json").read_text(encoding="utf-8"))
    measured = {role: _figures(table) for role, table in evaluation.get("models", {}).items()}
    unmeasured = {k: v for k, v in outcome.metrics.items() if k not in evaluation.get("metrics", ())}
    every = _every_figure(measured, unmeasured)
    student = {} if state.student is None else state.student.facts
    return {
        "name": outcome.recipe.name,
        "teacher": {
            "name": outcome.teacher.name,
            **_members(outcome.teacher),
            **_licence(outcome, "teacher"),
            **({"terms": terms} if (terms := getattr(outcome.teacher, "terms", "")) else {}),
            **_teacher_size(state, outcome.teacher),
        },
        "student": {
            "name": _student_name(outcome),
            **_licence(outcome, "student"),
            "params": student.get("params"),
            "bytes": student.get("bytes"),
            "source": _student_source(state.untrained),
        },
        "figures": {key: about(figure) for key, figure in every.items()},
        "before": _student(measured.get("before"), every, "the untrained student was not evaluated"),
        "after": _student(measured.get("after"), every, "no student was trained and evaluated"),
        **({"control": _student(measured["control"], every, "")} if "control" in measured else {}),
        "reference": _block(measured.get("teacher", {}), *RESULTS),
        "by_stage": _by_stage(state.trained, measured, evaluation.get("stages", ())),
        "retention": {
            key: _kept(share, *(measured.get(role, {}).get(key) for role in ("teacher", "after", "control")))
            for key, share in _figures(evaluation.get("retention", {})).items()
        },
        "differences": {
            role: _block(_figures(table), *RESULTS, "behaviour")
            for role, table in evaluation.get("differences", {}).items()
        },
        **{place: {role: _block(table, place) for role, table in measured.items()} for place in OTHERS},
        **_speed(measured),
        "train": _train([state.artifacts[name].facts for name in state.trained]),
        **({"on_policy": rollouts} if (rollouts := on_policy.summary(state.artifacts)) else {}),
        **money(outcome, {} if state.evaluation is None else state.evaluation.facts),
        **_task(outcome, evaluation),
        "scored_tokens": evaluation.get("scored_tokens"),
        "sources": provenance.sources(outcome),
        **({"answers": judged} if (judged := provenance.judged(state)) else {}),
        **({"mix": [one.as_dict() for one in outcome.mix]} if outcome.mix else {}),
        "recipe_hash": outcome.recipe.hash(),
        "artifacts": {name: artifact.key for name, artifact in state.artifacts.items()},
        "data": {split: _rows(rows) for split, rows in _splits(outcome.data).items()},
        "made": {
            "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "machine": machine(),
            "precision": _precision(outcome),
        },
        "seed": outcome.recipe.seed,
        "versions": versions(),
    }


def _precision(outcome: Outcome) -> dict[str, str]:
    """The number formats that the teacher, the measurements and each training computed in."""
    dtype = getattr(outcome.teacher, "dtype", None)
    formats = {} if dtype is None else {"teacher and measurements": str(dtype).removeprefix("torch.")}
    stages = outcome.state.resolved.items()
    return formats | {name: stage.precision for name, stage in stages if stage.trains}


def _licence(outcome: Outcome, side: str) -> dict[str, Any]:
    if stated := outcome.licences.get(side):
        return {"licence": stated}
    return {"licence": None, "licence_reason": "not stated"}


def _student_name(outcome: Outcome) -> str:
    """The student by what it is made of, since the run's name says nothing of it."""
    plugin, options = outcome.recipe.student.plugin
    untrained = outcome.state.untrained
    if model := options.get("model"):
        return str(model).rstrip("/").rpartition("/")[2] or str(model)
    if untrained is not None and "kept_layers" in untrained.facts:
        facts = untrained.facts
        return f"{outcome.teacher.name} cut to {len(facts['kept_layers'])} of {facts['of']} layers"
    return plugin.rpartition(":")[2]


def _splits(data: Dataset) -> dict[str, Sequence[Row]]:
    """The rows by what they are for."""
    of_stages = {name: parts.train + parts.validation for name, parts in data.of_stages.items()}
    own = {"train": data.train, "validation": data.validation, "heldout": data.heldout}
    return {**own, **of_stages, **{f"mix: {source}": rows for source, rows in data.mixed.items()}}


def _rows(rows: Sequence[Row]) -> dict[str, Any]:
    """How many rows, and the hash of their contents in order."""
    digest = hashlib.sha256()
    for row in rows:
        content = [row.id, row.messages, row.text, row.tools]
        digest.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    return {"rows": len(rows), "sha256": digest.hexdigest()}


def _figures(stored: Mapping[str, Any]) -> dict[str, Figure]:
    return {key: Figure(**fields) for key, fields in stored.items()}


def _every_figure(measured: Mapping[str, Table], metrics: Mapping[str, Sequence[Figure]]) -> Table:
    """Without values: what was measured of any model, and what the recipe could have asked for, with a reason."""
    every = {
        key: Figure(key, **about(figure)) for table in measured.values() for key, figure in table.items()
    }
    for metric, figures in metrics.items():
        for figure in figures:
            reason = f"the recipe's evaluate stage does not ask for {metric}"
            every.setdefault(figure.key, replace(figure, reason=reason))
    return every


def _student(table: Table | None, every: Table, not_evaluated: str) -> dict[str, Any]:
    """All results of a student, null with a reason where there is none."""
    if table is None:
        table = {key: replace(figure, reason=not_evaluated) for key, figure in every.items()}
    return _counted({**every, **table})


def _counted(table: Table) -> dict[str, Any]:
    """The results of a model, and the most prompts that any was measured on."""
    counts = [figure.n or 0 for figure in table.values() if figure.place in RESULTS]
    return {**_block(table, *RESULTS), "n": max(counts, default=0)}


def _block(table: Table, *places: str) -> dict[str, Any]:
    """The figures of these places: what was measured, or null with a reason."""
    block: dict[str, Any] = {}
    for key, figure in table.items():
        if figure.place in places and figure.value is None:
            block |= {key: None, f"{key}_reason": figure.reason or NOT_MEASURED}
        elif figure.place in places:
            entry = {name: getattr(figure, name) for name in (*MEASURED, "reason")}
            block[key] = {name: value for name, value in entry.items() if value not in (None, "")}
    return block


def _kept(
    share: Figure, teacher: Figure | None, student: Figure | None, control: Figure | None
) -> dict[str, Any]:
    """A row of `retention`."""
    missing = Figure("", reason="the recipe has no control stage")
    sides = {"teacher": teacher, "student": student, "control": control}
    row = _block({side: figure or missing for side, figure in sides.items()}, *RESULTS)
    row |= {} if share.floor is None else {"floor": share.floor, "floor_of": share.floor_of}
    if share.value is None:
        return row | {"ratio": None, "ci95": None, "ratio_reason": share.reason}
    return row | {"ratio": {"value": share.value, "n": share.n}, "ci95": [share.low, share.high]}


def _speed(measured: Mapping[str, Table]) -> dict[str, Any]:
    """Greedy tokens a second of each model, prompts side by side."""
    key = SPEED.key
    values = {role: table[key].value for role, table in measured.items() if key in table and table[key].value}
    reason = {f"{key}_reason": "no evaluate stage measured the speed of writing"}
    return {key: values} if values else {key: None, **reason}


def _task(outcome: Outcome, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The task, and what its metrics say of each model beside their figures."""
    spec = outcome.recipe.task
    if spec is None:
        return {"task": None, "task_reason": "the recipe has no task"}
    details = evaluation.get("details", {})
    return {"task": {"type": spec.type, "labels": list(spec.labels), "details": details}}


def _by_stage(
    trained: Sequence[str], measured: Mapping[str, Table], paired: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The figures before and after each training stage, where there is more than one, and their `paired`
    differences."""
    roles = ["before", *(f"after {name}" for name in trained[:-1]), "after"]
    if len(trained) < 2 or any(role not in measured for role in roles):
        return []
    blocks = [_counted(measured[role]) for role in roles]
    differences = [_block(_figures(table), *RESULTS, "behaviour") for table in paired]
    return [
        {"stage": name, "before": before, "after": after, "difference": difference}
        for name, before, after, difference in zip(trained, blocks[:-1], blocks[1:], differences, strict=True)
    ]


def _members(teacher: Any) -> dict[str, Any]:
    """Every teacher of several, and how they are put together."""
    if not hasattr(teacher, "members"):
        return {}
    members = [
        {
            "name": member.name,
            "weight": member.weight,
            "temperature": member.temperature,
            "rows": None if member.rows is None else sorted(member.rows),
            "fingerprint": member.teacher.fingerprint,
        }
        for member in teacher.members
    ]
    return {"about": teacher.about, "members": members}


def _teacher_size(state: Any, teacher: Any) -> dict[str, Any]:
    """Parameters, and bytes in the number format that its weights are stored in, as the student's are."""
    width = WIDTHS.get(getattr(teacher, "number_format", ""))
    for artifact in (state.untrained, *state.artifacts.values()):
        if artifact is not None and "teacher_params" in artifact.facts:
            params = artifact.facts["teacher_params"]
            return {"params": params, "bytes": params * width if width else artifact.facts["teacher_bytes"]}
    return {"params": None, "bytes": None, "params_reason": "the teacher was not loaded"}


def _student_source(untrained: Artifact | None) -> str:
    if untrained is None:
        return ""
    if "kept_layers" not in untrained.facts:
        return "its own weights"
    kept = untrained.facts["kept_layers"]
    return f"{len(kept)} of the teacher's {untrained.facts['of']} layers: {', '.join(map(str, kept))}"


def _train(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What making the student took, all its stages together; a control is no part of it."""
    if not facts:
        return dict.fromkeys(TRAIN) | {f"{name}_reason": "nothing was trained" for name in TRAIN}
    tokens, seconds = sum(f["tokens"] for f in facts), sum(f["train_seconds"] for f in facts)
    steps, peak = sum(f["steps"] for f in facts), max(f["peak_rss_bytes"] for f in facts)
    values = (steps, tokens, tokens / max(seconds, 1e-9), seconds, peak)
    last = {key: facts[-1].get(key) for key in ("best_step", "validation_rows")}
    return {**dict(zip(TRAIN, values, strict=True)), **last}
