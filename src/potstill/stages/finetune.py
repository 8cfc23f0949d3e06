"""finetune: the student learns from text alone: its own data, or what a generate stage wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from potstill.recipe.inputs import DataSpec
from potstill.recipe.specs import Conflict, Count, Files, Format, Text
from potstill.recipe.stages import StageName
from potstill.recipe.training import Training

if TYPE_CHECKING:
    from potstill.stages._context import Context, State


class Finetune(Training):
    """The student learns from text alone: its own data, or what a generate stage wrote."""

    verb: Literal["finetune"] = "finetune"
    name: StageName = "finetune"
    best_by: Literal["loss", "cross_entropy"] = "loss"
    """Which validation figure decides what the best weights are: the stage's own loss, or another."""
    data: Files | None = None
    """Rows for this stage; without it, the recipe's data with the generated answers."""
    format: Format = "auto"
    """How a row of `data` is written."""
    columns: dict[str, Text] = Field(default_factory=dict)
    """Own column name: the name that the format wants, or `unused` for a column that is left out."""
    limit: Count | None = None
    """Use only so many rows of `data`."""
    terms: str = ""
    """Under which terms the rows of `data` are used; it stands in the summary and the report."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if self.data is None:
            for key in ("format", "columns", "limit", "terms"):
                if self.changed(key):
                    yield Conflict(key, "has no effect without data.", "Name the file in data.")

    def rows(self, data: DataSpec) -> DataSpec | None:
        if self.data is None:
            return None
        changes = {"train": self.data, "format": self.format, "columns": self.columns, "limit": self.limit}
        return data.model_copy(update=changes)


def run(spec: Finetune, state: State, context: Context) -> State:
    """Train the student by cross-entropy on the stage's own rows, or on the recipe's."""
    from potstill.stages import _rows, _student, _train

    state = _student.with_student(state, context)
    rows = _rows.training(state, context, spec)
    spec, defaults = context.settle(spec, state, rows.sizes)
    trained = _train.train_student(spec, state, rows, context)
    return state.after(spec, trained, defaults, student=trained, trained=(*state.trained, spec.name))
