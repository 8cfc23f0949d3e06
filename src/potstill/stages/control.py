"""control: a twin of the student trained without the teacher's distribution, to show what that adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from potstill.recipe.defaults import Default
from potstill.recipe.specs import Conflict
from potstill.recipe.stages import StageName, StageSpec
from potstill.recipe.training import Training

if TYPE_CHECKING:
    from potstill.stages._context import Context, State


class Control(Training):
    """A twin of the student trained without the teacher's distribution, to show what that adds."""

    from_untrained: ClassVar[bool] = True

    verb: Literal["control"] = "control"
    name: StageName = "control"
    best_by: Literal["loss", "cross_entropy"] = "loss"
    """Which validation figure decides what the best weights are: the stage's own loss, or another."""
    method: Literal["sft"] = "sft"
    """How the twin is trained."""

    def misplaced(self, before: Sequence[StageSpec]) -> Iterator[Conflict]:
        if not any(stage.trains and not stage.from_untrained for stage in before):
            yield Conflict(
                "stages",
                f"{self.name} trains a twin of an earlier distill or finetune stage, and there is none.",
                "Move it behind the stage it controls.",
            )

    def of(self, stages: Sequence[StageSpec]) -> str:
        """The stage that it is a twin of: the last one before it that needs the teacher's distribution, else
        the last that trains on the same rows."""
        before = [s for s in stages[: stages.index(self)] if s.trains and not s.from_untrained]
        on_the_same_rows = [s for s in before if getattr(s, "data", None) is None]
        twins = [s for s in before if "distribution" in s.needs] or on_the_same_rows
        return twins[-1].name if twins else ""

    def completed(
        self, stages: Sequence[StageSpec], resolved: Mapping[str, StageSpec]
    ) -> tuple[Control, tuple[Default, ...]]:
        """What it leaves open, as its twin has it: two budgets would make the comparison worthless."""
        name = self.of(stages)
        if name not in resolved:
            return self, ()
        written = next(stage for stage in stages if stage.name == name)
        taken = {key: getattr(resolved[name], key) for key in self._shared() if not self.changed(key)}
        if getattr(written, "learning_rate", "auto") == "auto":
            # What suits a distribution, or the student's own text, need not suit plain text.
            taken.pop("learning_rate", None)
        why = "what a control leaves open is as its twin has it, so that both have one budget"
        return self.model_copy(update=taken), (Default(f"stages.{self.name}", f"as {name}", why),)

    def _shared(self) -> set[str]:
        """The options that it takes over; how often to validate and save goes with the length."""
        shared = set(Training.model_fields) - set(StageSpec.model_fields) - {"best_by"}
        if self.steps is not None or self.epochs is not None:
            shared -= {"steps", "epochs", "validate_every", "validation_rows", "checkpoint_every"}
        return shared


def run(spec: Control, state: State, context: Context) -> State:
    """Train the untrained student on the same rows by cross-entropy."""
    from potstill.stages import _rows, _student, _train

    state = _student.with_student(state, context)
    rows = _rows.training(state, context)
    spec, defaults = context.settle(spec, state, rows.sizes)
    trained = _train.train_student(spec, state, rows, context)
    return state.after(spec, trained, defaults, control=trained)
