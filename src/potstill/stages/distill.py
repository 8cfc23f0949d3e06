"""distill: the student learns the teacher's distribution, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from potstill.recipe.defaults import CHUNK_BYTES, COMPILED_CHUNK_BYTES, COMPILED_STEPS, Automatic, Facts
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
from potstill.recipe.self_teaching import PrivilegedSpec, SelfTeacherSpec
from potstill.recipe.self_teaching import conflicts as conflicts_of_privileged
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
    best_by: Literal["auto", "last", "loss", "cross_entropy", "forward_kl", "own_kl"] = "auto"
    """Which validation figure decides what the best weights are: the stage's own loss, another, or own_kl, which is
    KL(student‖teacher) on what the student answers to the validation prompts; last keeps the last weights. auto is
    last where the student writes and no patience is set, else loss."""
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
    compile: bool | Auto = "auto"
    """Compile the loss on whole distributions, once, in the first step; where that fails it runs as it is, after a
    warning. auto compiles on a GPU, in trainings that are long enough for it."""
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
    self_teacher: SelfTeacherSpec | None = None
    """The student itself teaches, from a copy that follows it, in place of the recipe's teacher."""
    privileged: PrivilegedSpec | None = None
    """What the teacher reads beside the prompt, and the student does not."""
    own_means: bool = False
    """Divide each term by the tokens that it reads; false divides all of them by those of the step."""

    def conflicts(self) -> Iterator[Conflict]:
        yield from super().conflicts()
        yield from self._conflicts_of_best()
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
        if self.compile is True and (reason := self._why_not_compiled()):
            yield Conflict("compile", f"can do nothing here: {reason}.", "Set compile: false or auto.")
        yield from moving_weight("divergence_weight", self.divergence_weight)
        yield from self._conflicts_of_terms()

    def _conflicts_of_best(self) -> Iterator[Conflict]:
        if self.best_by == "last" and self.patience is not None:
            yield Conflict(
                "patience", "has nothing to compare with best_by: last.", "Name a figure in best_by."
            )
        if self.best_by == "own_kl" and not self.strategy.student_writes:
            message = f"own_kl reads text of the student, and {self.strategy.name} lets it write none."
            yield Conflict("best_by", message, "Set strategy: on_policy, or another figure.")

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
        if self.privileged is not None:
            yield from conflicts_of_privileged(
                self.privileged, self.strategy, reads_rows=self._asks_about_rows
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
    def reads_rows(self) -> bool:
        """Whether steps hold answers that the student did not write."""
        option = self.strategy.option_named
        return option("STUDENT_WRITES") != 1 or bool(option("KEEPS_ROWS"))

    @property
    def _asks_about_rows(self) -> bool:
        """Whether the teacher is asked about such answers: hard labels beside the student's text need no teacher."""
        labels = self.supervised is not None and self.supervised.ce_weight == 1 and self.preference is None
        return self.reads_rows and not (labels and self.strategy.option_named("STUDENT_WRITES") == 1)

    @property
    def asks(self) -> frozenset[str]:
        """A capture holds what the recipe's teacher says of the rows as they are, and nothing else."""
        others = self.strategy.student_writes or self.self_teacher or self.privileged
        return self.needs | {"live"} if others else self.needs

    @property
    def further_columns(self) -> tuple[str, ...]:
        shown = None if self.privileged is None else self.privileged.column
        return () if shown is None else (shown,)

    @property
    def room(self) -> int:
        return self.new_tokens if self.strategy.option_named("STUDENT_WRITES") == 1 else 0

    @property
    def passes(self) -> int:
        return int(self.strategy.option_named("PASSES") or 1)

    def automatic(self, facts: Facts) -> dict[str, Automatic]:
        chosen = super().automatic(facts)
        if self.best_by == "auto":
            chosen["best_by"] = self._best_by()
        compiles = self.compile
        if compiles == "auto":
            compiles, _ = chosen["compile"] = self._compile(facts)
        if self.chunk_bytes == "auto":
            sizes = COMPILED_CHUNK_BYTES if compiles and facts.whole else CHUNK_BYTES
            chosen["chunk_bytes"] = sizes[facts.device], "chosen; logits of a whole batch never exist"
        return chosen

    @property
    def copies(self) -> int:
        return sum(option is not None for option in (self.self_teacher, self.reference))

    def _why_not_compiled(self) -> str:
        """What of this stage keeps its loss from being compiled, in words; "" where nothing does."""
        compared = [self.divergence, *(term.divergence for term in (self.supervised, self.reference) if term)]
        values = [value for divergence in compared for value in divergence.options.values()]
        if any(isinstance(value, Schedule | dict) for value in (self.temperature, self.ce_weight, *values)):
            return "a value that moves would be compiled anew in every step"
        if self.support is not None and self.supervised is None:
            return "only whole distributions are compiled"
        return "hard labels alone are not compiled" if self.ce_weight == 1 else ""

    def _compile(self, facts: Facts) -> tuple[bool, str]:
        *_, steps = self.length(facts)
        own = self._why_not_compiled()
        reasons = {
            "the gain is a GPU's": facts.device != "cuda",
            facts.no_compiler or "": facts.no_compiler is not None,
            own: own != "",
            "only a whole distribution of one teacher is compiled": not facts.whole,
            "the number of steps is not known": steps is None,
            f"{steps} steps; compiling pays from about {COMPILED_STEPS}": (steps or 0) < COMPILED_STEPS,
        }
        against = next((reason for reason, holds in reasons.items() if holds), None)
        return against is None, against or f"{steps} steps, each with fewer passes over the logits"

    def _best_by(self) -> Automatic:
        if not self.strategy.student_writes:
            return "loss", "the stage's own loss on rows that are not trained on"
        if self.patience is not None:
            return "loss", "patience compares it"
        return "last", (
            "validation rows hold no text of the student, which it learns from here, and a loop of its own is cheap "
            "in every figure; guards stop a training that goes wrong"
        )

    def default_learning_rate(self, facts: Facts) -> Automatic:
        return self.strategy.constant("LEARNING_RATE") or super().default_learning_rate(facts)

    def notes(self) -> Iterator[str]:
        if self.self_teacher is not None:
            yield (
                f"stages.{self.name}.self_teacher: a second copy of the student is in memory and in every checkpoint, "
                "4 bytes a parameter; the recipe's teacher is not read in this stage."
            )
        if self.ce_weight == 1:
            yield (
                f"stages.{self.name}.ce_weight: 1 trains on the hard labels alone; the teacher's distribution "
                "is not used. A finetune stage does the same without a teacher in memory."
            )


def run(spec: Distill, state: State, context: Context) -> State:
    """Train the student on the recipe's rows against the teacher's distribution."""
    from potstill.stages import _captured, _privileged, _rows, _student, _train

    state = _student.with_student(state, context)
    rows = _rows.with_room(_rows.training(state, context), spec.new_tokens, context)
    rows = _privileged.with_privileged(rows, spec, context.setup)
    teacher = _captured.teaching(spec, state, context)
    if spec.self_teacher is None:
        rows = _captured.reached(spec.name, rows, teacher, context)
    whole = spec.self_teacher is not None or _captured.is_whole(teacher)
    spec, defaults = context.settle(spec, state, rows.sizes, whole=whole)
    trained = _train.train_student(spec, state, rows, context, teacher=teacher)
    return state.after(spec, trained, defaults, student=trained, trained=(*state.trained, spec.name))
