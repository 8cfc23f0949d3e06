"""distill: the student learns the teacher's distribution, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.specs import (
    Auto,
    Conflict,
    Count,
    DivergenceChoice,
    Positive,
    Schedule,
    Share,
    StrategyChoice,
    TokenWeightChoice,
    ends,
)
from potstill.recipe.stages import StageName
from potstill.recipe.training import Training

if TYPE_CHECKING:
    from potstill.stages._context import Context, State


class Distill(Training):
    """The student learns the teacher's distribution, token by token."""

    needs: ClassVar[frozenset[str]] = frozenset({"distribution"})

    verb: Literal["distill"] = "distill"
    name: StageName = "distill"
    best_by: Literal["loss", "cross_entropy", "forward_kl"] = "loss"
    """Which validation figure decides what the best weights are: the stage's own loss, or another."""
    divergence: DivergenceChoice = DivergenceChoice(name="forward_kl")
    """How far the student is from the teacher."""
    strategy: StrategyChoice = StrategyChoice(name="offline")
    """Who writes the text that is trained on."""
    temperature: Positive | Schedule = 1.0
    """Softens both distributions in the divergence; `sampling_temperature` is the one for text."""
    ce_weight: Share | Schedule = 0.0
    """Share of the hard-label term; the divergence has the rest."""
    token_weights: TokenWeightChoice | None = None
    """Which tokens weigh more in the loss; a step divides by the weights' sum."""
    chunk_bytes: Count | Auto = "auto"
    """Memory for the logits that exist at one time, teacher's and student's together."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        if min(ends(self.temperature)) <= 0:
            yield Conflict("temperature", "must stay above 0 at both ends.", "1 changes nothing.")
        if not all(0 <= end <= 1 for end in ends(self.ce_weight)):
            yield Conflict("ce_weight", "must stay between 0 and 1 at both ends.", "It is a share.")
        if self.token_weights is not None and max(ends(self.ce_weight)) == 1:
            yield Conflict(
                "token_weights",
                "cannot work where ce_weight reaches 1: weights come from the teacher's distribution.",
                "Keep ce_weight below 1, or leave this out.",
            )
        share = self.strategy.option_named("STUDENT_WRITES")
        if share == 0:
            yield Conflict(
                "strategy",
                f"{self.strategy.name} with a share of 0 never lets the student write.",
                "Write strategy: offline, or raise the share.",
            )
        if share == 1 and max(ends(self.ce_weight)) > 0:
            yield Conflict(
                "ce_weight",
                f"must be 0 with strategy {self.strategy.name}: the hard-label term would train the student "
                "on its own mistakes.",
                "Set ce_weight: 0, or strategy: offline.",
            )

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen = super().automatic(facts)
        if self.chunk_bytes == "auto":
            chosen["chunk_bytes"] = 96 * 2**20, "chosen; logits of a whole batch never exist"
        return chosen

    def default_learning_rate(self, facts: Facts) -> Automatic:
        return self.strategy.constant("LEARNING_RATE") or super().default_learning_rate(facts)

    def notes(self) -> Iterator[str]:
        if self.ce_weight == 1:
            yield (
                f"stages.{self.name}.ce_weight: 1 trains on the hard labels alone; the teacher's distribution "
                "is not used. A finetune stage does the same without a teacher in memory."
            )


def run(spec: Distill, state: State, context: Context) -> State:
    """Train the student on the recipe's rows against the teacher's distribution."""
    from potstill.stages import _rows, _student, _train

    state = _student.with_student(state, context)
    rows = _rows.training(state, context)
    spec, defaults = context.settle(spec, state, rows.sizes)
    trained = _train.train_student(spec, state, rows, context, teacher=context.setup.teacher)
    return state.after(spec, trained, defaults, student=trained, trained=(*state.trained, spec.name))
