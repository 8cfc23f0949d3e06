"""The student before training: cut from the teacher, or another model's weights in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from potstill.data.batch import collate
from potstill.models import anatomy, loading
from potstill.stages.common import ModelRef, World, produce
from potstill.store.artifacts import Artifact
from potstill.students import depth
from potstill.types import Batch, Example

CALIBRATION_TOKENS = 16_384


@dataclass(frozen=True)
class CutPlan:
    """Which layers stay: `layers`, or `keep` of them chosen `by` block_influence or uniform."""

    keep: int
    by: str = "block_influence"
    layers: tuple[int, ...] = ()


def cut_from_teacher(
    world: World,
    teacher: ModelRef,
    plan: CutPlan,
    calibration: Sequence[Example],
    pad_id: int,
    template: str | None = None,
) -> Artifact:
    """A student with some of the teacher's layers; influence is measured on `calibration`.

    `template` is the chat template that it is trained with, where it is not the tokenizer's own.
    """
    rows = _few(calibration) if plan.by == "block_influence" and not plan.layers else []
    inputs = {
        "teacher": teacher.fingerprint,
        "dtype": str(teacher.dtype),
        "plan": [plan.keep, plan.by, plan.layers],
        "calibration": [row.input_ids for row in rows],
        "template": template,
    }

    def build(folder: Path) -> Mapping[str, Any]:
        loaded = teacher.load(world.device)
        anatomy.head_form(loaded.model)  # refuses weights that are not finite, before anything is cut
        total = len(anatomy.layers(loaded.model))
        influence: list[float] = []
        kept = list(plan.layers)
        if not kept and plan.by == "uniform":
            kept = depth.uniform(total, plan.keep)
        elif not kept:
            with world.console.bar("measuring block influence", len(rows)) as bar:
                influence = depth.block_influence(loaded.model, _batches(rows, pad_id, bar.update))
            kept = depth.most_influential(influence, plan.keep)
        student = depth.cut(loaded.model, kept)
        loading.save(student, _speaking(loaded.tokenizer, template), folder / "student")
        sizes = {f"teacher_{name}": value for name, value in facts_of(loaded.model).items()}
        return {"kept_layers": kept, "of": total, "influence": influence, **sizes, **facts_of(student)}

    return produce(world, "student", "student", inputs, build)


def from_model(world: World, student: ModelRef, template: str | None = None) -> Artifact:
    """An existing smaller model as the student, with the chat template that it is trained with."""

    def build(folder: Path) -> Mapping[str, Any]:
        loaded = loading.load(student.source, dtype=torch.float32)
        loading.save(loaded.model, _speaking(loaded.tokenizer, template), folder / "student")
        return facts_of(loaded.model)

    inputs = {"model": student.fingerprint, "template": template}
    return produce(world, "student", "student", inputs, build)


def _speaking(tokenizer: Any, template: str | None) -> Any:
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def facts_of(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters and bytes, tied weights once."""
    return {
        "params": anatomy.parameter_count(model),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    }


def _few(examples: Sequence[Example]) -> list[Example]:
    """Enough rows to measure on: the first ones, up to `CALIBRATION_TOKENS`."""
    rows: list[Example] = []
    tokens = 0
    for example in examples:
        if tokens >= CALIBRATION_TOKENS:
            break
        rows.append(example)
        tokens += len(example.input_ids)
    return rows


def _batches(rows: Sequence[Example], pad_id: int, progress: Any, size: int = 8) -> Iterator[Batch]:
    for start in range(0, len(rows), size):
        yield collate(rows[start : start + size], pad_id=pad_id)
        progress(min(start + size, len(rows)))
