"""`summary.json`: a run's figures for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from potstill.recipe.defaults import Default
from potstill.store.artifacts import Artifact

PACKAGES = ("potstill", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


@dataclass(frozen=True)
class Outcome:
    """What a run left: its parts and the artifact of every stage, None for what did not run."""

    recipe: Any
    data: Any
    teacher: Any
    stages: Mapping[str, Artifact]
    untrained: Artifact | None
    student: Artifact | None
    control: Artifact | None
    trained: tuple[str, ...]
    evaluation: Artifact | None
    answers: Artifact | None
    defaults: tuple[Default, ...]
    funnel: Mapping[str, int]
    lengths: Mapping[str, Sequence[int]]
    reused: tuple[str, ...] = ()
    started: float = 0.0
    finished: float = 0.0


def summarise(outcome: Outcome) -> dict[str, Any]:
    """summary.json: a value that does not apply is null with a reason beside it."""
    found = evaluation_of(outcome.evaluation)
    tables = found.get("models", {})
    asked = {metric for stage in outcome.recipe.stages for metric in getattr(stage, "metrics", ())}
    summary: dict[str, Any] = {
        "name": outcome.recipe.name,
        "teacher": {"name": Path(outcome.teacher.source.location).name, **_teacher_size(outcome)},
        "student": {
            "name": outcome.recipe.name,
            "params": None if outcome.student is None else outcome.student.facts["params"],
            "bytes": None if outcome.student is None else outcome.student.facts["bytes"],
            "source": _student_source(outcome),
        },
        "before": _block(tables.get("before"), "the untrained student was not evaluated", asked),
        "after": _block(tables.get("after"), "no student was trained and evaluated", asked),
        "reference": tables.get("teacher", {}),
        "by_stage": _by_stage(outcome.trained, tables),
        "retention": found.get("retention", {}),
        "train": _train([outcome.stages[name] for name in outcome.trained]),
        **_speed(found.get("speed")),
        "scored_tokens": found.get("scored_tokens"),
        "recipe_hash": outcome.recipe.hash(),
        "artifacts": {name: artifact.key for name, artifact in outcome.stages.items()},
        "seed": outcome.recipe.seed,
        "versions": versions(),
    }
    if "control" in tables:
        summary["control"] = _block(tables["control"], "", asked)
    return summary


def versions() -> dict[str, str]:
    """Python and the packages that figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def evaluation_of(artifact: Artifact | None) -> dict[str, Any]:
    """What an evaluate stage wrote; nothing without one."""
    return (
        {}
        if artifact is None
        else json.loads((artifact.path / "evaluation.json").read_text(encoding="utf-8"))
    )


_KEYS = {
    "forward_kl": "likelihood",
    "reverse_kl": "likelihood",
    "ppl": "likelihood",
    "agreement": "agreement",
    "agreement_top5": "agreement",
    "rouge_l": "rouge_l",
}
"""The figures of a student, and the metric of an evaluate stage that asks for each."""


def _block(table: Mapping[str, Any] | None, reason: str, asked: Collection[str]) -> dict[str, Any]:
    """Every figure; null with its reason where there is none."""
    block = {} if table is None else dict(table)
    for key, metric in _KEYS.items():
        if key in block:
            continue
        why = f"the recipe's evaluate stage does not ask for {metric}"
        if table is None:
            why = reason
        elif metric in asked:
            why = "the held-out rows hold nothing that it could be measured on"
        block |= {key: None, f"{key}_reason": why}
    return _filled(block)


def _filled(table: Mapping[str, Any]) -> dict[str, Any]:
    return {**table, "n": max((v["n"] for v in table.values() if isinstance(v, Mapping)), default=0)}


def _speed(measured: Mapping[str, float] | None) -> dict[str, Any]:
    """Greedy tokens a second of each model, prompts side by side."""
    if measured:
        return {"generation_tokens_per_second": dict(measured)}
    reason = "no evaluate stage measured the speed of writing"
    return {"generation_tokens_per_second": None, "generation_tokens_per_second_reason": reason}


def _by_stage(trained: Sequence[str], tables: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each training stage found and left, where there is more than one."""
    roles = ["before", *(f"after {name}" for name in trained[:-1]), "after"]
    if len(trained) < 2 or any(role not in tables for role in roles):
        return []
    return [
        {"stage": name, "before": _filled(tables[roles[i]]), "after": _filled(tables[roles[i + 1]])}
        for i, name in enumerate(trained)
    ]


def _teacher_size(outcome: Outcome) -> dict[str, Any]:
    for artifact in (outcome.untrained, *outcome.stages.values()):
        if artifact is not None and "teacher_params" in artifact.facts:
            return {"params": artifact.facts["teacher_params"], "bytes": artifact.facts["teacher_bytes"]}
    return {"params": None, "bytes": None, "params_reason": "the teacher was not loaded"}


def _student_source(outcome: Outcome) -> str:
    if outcome.untrained is None:
        return ""
    facts = outcome.untrained.facts
    if "kept_layers" not in facts:
        return "its own weights"
    return f"{len(facts['kept_layers'])} of the teacher's {facts['of']} layers: {', '.join(map(str, facts['kept_layers']))}"


def _train(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """What making the student took, all its stages together; a control is no part of it."""
    names = ("steps", "tokens", "tokens_per_second", "seconds", "peak_rss_bytes")
    if not artifacts:
        return dict.fromkeys(names) | {f"{n}_reason": "nothing was trained" for n in names}
    facts = [artifact.facts for artifact in artifacts]
    tokens, seconds = sum(f["tokens"] for f in facts), sum(f["train_seconds"] for f in facts)
    return {
        "steps": sum(f["steps"] for f in facts),
        "tokens": tokens,
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "seconds": seconds,
        "peak_rss_bytes": max(f["peak_rss_bytes"] for f in facts),
        "best_step": facts[-1]["best_step"],
    }
