"""distill: the student learns the teacher's distribution, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from potstill.recipe.defaults import Automatic, Facts
from potstill.recipe.guards import Guards
from potstill.recipe.on_policy import (
    PolicyGradientSpec,
    PreferenceSpec,
    ReferenceSpec,
    SupervisedSpec,
    TopSpec,
    Weight,
    moving_weight,
)
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
    guards: Guards | None = Guards()
    """When a training on the student's own text gives an alarm and stops; null turns all guards off. What they
    say is no part of a result, so a training that one stopped goes on behind other limits."""
    chunk_bytes: Count | Auto = "auto"
    """Memory for the logits that exist at one time, teacher's and student's together."""
    divergence_weight: Weight | Schedule = 1.0
    """Of the divergence and the hard-label term; 0 leaves both out beside another term."""
    support: TopSpec | None = None
    """Compare the teacher's likeliest ids alone; null compares the whole vocabulary."""
    policy_gradient: PolicyGradientSpec | None = None
    """Add the policy gradient of log p / q on the text that the student writes (MiniLLM, on-policy distillation)."""
    supervised: SupervisedSpec | None = None
    """Another loss on the text of data and teacher, which on_policy keeps with `keep_rows`; the stage's divergence
    then reads the student's text alone."""
    reference: ReferenceSpec | None = None
    """Add the distance to the student as it was before this stage, on the text that it writes."""
    preference: PreferenceSpec | None = None
    """Add pairs of the teacher's and the student's answer to a prompt (DPKD)."""
    own_means: bool = False
    """Divide each term by the tokens that it reads; false divides all of them by those of the step."""

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
        if share == 0 and not self.strategy.option_named("STUDENT_WRITES_MORE"):
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
        yield from moving_weight("divergence_weight", self.divergence_weight)
        yield from self._conflicts_of_terms()

    @property
    def terms(self) -> tuple[str, ...]:
        """The options that add terms and are set."""
        named = ("policy_gradient", "supervised", "reference", "preference")
        return tuple(name for name in named if getattr(self, name) is not None)

    @property
    def adds_to_divergence(self) -> bool:
        """Whether the divergence and the hard-label term are not all that is minimised, as they are."""
        return bool(self.terms or self.support or self.changed("divergence_weight"))

    def _conflicts_of_terms(self) -> Iterator[Conflict]:
        if self.supervised is not None and max(ends(self.ce_weight)) > 0:
            yield Conflict(
                "ce_weight",
                "must be 0 beside supervised: the stage's divergence then reads the student's own text alone.",
                "Set supervised.ce_weight.",
            )
        if self.terms and self.token_weights is not None:
            yield Conflict(
                "token_weights",
                f"cannot work beside {self.terms[0]}: a step divides by the sum of one term's weights.",
                "Leave one of the two out.",
            )
        if not (self.terms or max(ends(self.divergence_weight))):
            message = "of 0 leaves nothing to minimise."
            yield Conflict("divergence_weight", message, "Raise it, or add another term.")
        gradient = self.policy_gradient
        if gradient is not None and self.strategy.proposes and gradient.importance != "none":
            yield Conflict(
                "policy_gradient.importance",
                "cannot weigh text in which the teacher replaced tokens: no mixture wrote it.",
                "Set importance: none, or proposals: 0.",
            )
        if gradient is not None and self.counts_from == "next" and gradient.discount == 0:
            yield Conflict(
                "policy_gradient.discount",
                "of 0 leaves nothing of returns that begin at the next token, as they do beside reverse_kl.",
                "Set divergence_weight: 0 for the sampled token alone, or leave policy_gradient out: the divergence "
                "has the same gradient with less noise.",
            )

    @property
    def counts_from(self) -> str:
        """Where a return of the policy gradient begins: at the next token beside the exact term of its own."""
        assert self.policy_gradient is not None
        if self.policy_gradient.counts_from != "auto":
            return self.policy_gradient.counts_from
        exact = self.divergence.name == "reverse_kl" and max(ends(self.divergence_weight)) > 0
        return "next" if exact else "this"

    @property
    def new_tokens(self) -> int:
        """Most tokens that the student writes behind a prompt; 0 where it writes nothing."""
        return self.strategy.option_named("NEW_TOKENS") or 0

    @property
    def room(self) -> int:
        return self.new_tokens if self.strategy.option_named("STUDENT_WRITES") == 1 else 0

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
    rows = _rows.with_room(_rows.training(state, context), spec.new_tokens, context)
    spec, defaults = context.settle(spec, state, rows.sizes)
    trained = _train.train_student(spec, state, rows, context, teacher=context.setup.teacher)
    return state.after(spec, trained, defaults, student=trained, trained=(*state.trained, spec.name))
