"""The student before training: made by its plug-in where no stage before did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from potstill.models import generation, saving
from potstill.recipe import plugins
from potstill.stages import _rows
from potstill.stages._artifact import produce
from potstill.stages._context import Context, State
from potstill.store.artifacts import Artifact
from potstill.types import Example

VERSION = 3  # raised when an untrained student changes its meaning


def with_student(state: State, context: Context) -> State:
    """Make the student on its first use."""
    if state.student is not None:
        return state
    student = _make(context, lambda: _rows.examples(state, context, "train").examples)
    return replace(state, student=student, untrained=student)


def _make(context: Context, examples: Callable[[], Sequence[Example]]) -> Artifact:
    ref = context.setup.student
    source = replace(
        ref.context,
        examples=examples,
        pad_id=context.setup.readers.student.pad_id,
        console=context.console,
    )
    made_from = getattr(ref.plugin, "inputs", None)
    inputs = {
        "version": VERSION,
        "plugin": plugins.identity("students", ref.name, ref.options),
        "made_from": made_from(source, **ref.options)
        if made_from is not None
        else [source.fingerprint, [row.input_ids for row in source.calibration()]],
        "template": ref.template,
    }

    def build(folder: Path) -> Mapping[str, Any]:
        built = ref.plugin.build(source, **ref.options)
        if ref.template is not None:
            built.tokenizer.chat_template = ref.template
        generation.keep_valid(built.model)
        sizes = saving.save(built.model, built.tokenizer, folder / "student")
        context.setup.teacher.close()
        return {**built.facts, **sizes}

    return produce(context, "student", "student", inputs, build)
