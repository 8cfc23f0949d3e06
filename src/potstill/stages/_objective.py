"""What a training stage minimises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.errors import SignalError
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.preference import Preference
from potstill.objectives.reference import AgainstFrozen
from potstill.objectives.terms import Term, Terms, reads_drawn
from potstill.objectives.token import Divergence, TokenLoss, TokenWeight
from potstill.recipe import plugins
from potstill.recipe.specs import DivergenceChoice, Schedule, ends, value_at
from potstill.recipe.training import Training
from potstill.signals.top import TopIds
from potstill.stages._terms import (
    Beside,
    identity_of_terms,
    policy_gradient,
    require_lesson,
    require_writer,
)
from potstill.stages.distill import Distill


@dataclass(frozen=True)
class TokenSettings:
    """The token objective of a stage, or of one of its terms, with what moves over the stage.

    `options` are the divergence's, schedules included.
    """

    divergence: Divergence
    options: Mapping[str, Any]
    temperature: float | Schedule = 1.0
    ce_weight: float | Schedule = 0.0
    weigh: TokenWeight | None = None

    def at(self, fraction: float, top: TopIds | None = None) -> TokenLoss:
        """The loss when `fraction` of the stage is done."""
        options = {name: value_at(value, fraction) for name, value in self.options.items()}
        return TokenLoss(
            replace(self.divergence, options=options),
            value_at(self.temperature, fraction),
            value_at(self.ce_weight, fraction),
            weigh=self.weigh,
            balanced=max(ends(self.ce_weight)) > 0,
            top=top,
        )


@dataclass(frozen=True)
class Objective:
    """What a stage minimises, from its options.

    `identity` is what tells two objectives apart. `spec` is a distill stage whose options add terms, else None.
    """

    tokens: TokenSettings
    identity: Mapping[str, Any]
    spec: Distill | None = None
    supervised: TokenSettings | None = None
    reference: TokenSettings | None = None
    beside: Beside = field(default_factory=Beside)

    @property
    def divergence(self) -> Divergence:
        return self.tokens.divergence

    @property
    def compared(self) -> Mapping[str, Divergence]:
        """Each divergence that reads the teacher's signal, by the option that names it."""
        named = {"divergence": self.divergence}
        if self.supervised is not None:
            named["supervised.divergence"] = self.supervised.divergence
        return named

    def at(self, step: int, steps: int) -> TokenLoss:
        """The token loss of optimizer step `step` (0-based) out of `steps`: what moves has its value there."""
        return self.tokens.at(_fraction(step, steps), self._top())

    def terms(self, step: int, steps: int) -> Terms:
        """All that step `step` out of `steps` adds up, with weights."""
        if self.spec is None:
            return self.at(step, steps)
        fraction = _fraction(step, steps)
        terms = [*self._comparisons(self.spec, fraction), *self._additions(self.spec, fraction)]
        return [(weight, term) for weight, term in terms if weight] or terms[:1]

    def reads_drawn(self, steps: int) -> bool:
        """Whether any step reads what both models said of drawn tokens: a weight that moves is 0 at one end alone."""
        return any(reads_drawn(self.terms(step, steps)) for step in (0, steps - 1))

    def _comparisons(self, spec: Distill, fraction: float) -> Iterator[tuple[float, Term]]:
        """The stage's divergence, and what stands in its place on the text of data and teacher."""
        tokens, weight = self.tokens.at(fraction, self._top()), value_at(spec.divergence_weight, fraction)
        gradient, share, own = spec.policy_gradient, spec.strategy.teacher_share, spec.own_means
        importance = "none" if gradient is None or not share else gradient.importance
        if self.supervised is None and importance == "none":
            yield weight, tokens
            return
        yield weight, ByOrigin(tokens, True, own_mean=own, importance=importance, teacher_share=share)
        if self.supervised is None or spec.supervised is None:
            yield weight, ByOrigin(tokens, False, "dataset_", own_mean=own)
        else:
            other = ByOrigin(self.supervised.at(fraction), False, "supervised_", own_mean=own)
            yield value_at(spec.supervised.weight, fraction), other

    def _additions(self, spec: Distill, fraction: float) -> Iterator[tuple[float, Term]]:
        """What is added on the student's text, and pairs."""
        if (gradient := spec.policy_gradient) is not None:
            yield value_at(gradient.weight, fraction), policy_gradient(spec, gradient, self.beside)
        if self.reference is not None and spec.reference is not None:
            tokens, beside = self.reference.at(fraction), self.beside
            assert beside.before is not None
            distance = AgainstFrozen(tokens, beside.before, beside.autocast, beside.in_parts)
            weight = value_at(spec.reference.weight, fraction)
            yield weight, ByOrigin(distance, True, "reference_", own_mean=spec.own_means)
        if spec.preference is not None:
            yield value_at(spec.preference.weight, fraction), Preference(spec.preference.beta)

    def validated(self, steps: int) -> Terms:
        """What validation rows, which data or teacher wrote, are measured by: the last step's token loss of them.

        A stage that learns from the student's text alone is measured by its divergence.
        """
        if self.spec is None or self.supervised is None or self.spec.supervised is None:
            return self.at(steps - 1, steps)
        return [(value_at(self.spec.supervised.weight, 1.0) or 1.0, self.supervised.at(1.0))]

    def _top(self) -> TopIds | None:
        support = None if self.spec is None else self.spec.support
        if support is None:
            return None
        return TopIds(support.top_k, self.beside.special_ids if support.mask_special else ())


def _fraction(step: int, steps: int) -> float:
    return step / max(1, steps - 1)


def objective_of(spec: Training) -> Objective:
    """The objective of a training stage: its divergence, or cross-entropy where it compares nothing.

    Raises:
        RecipeError: the divergence, the token weight or another plug-in refuses its options.
    """
    choice = getattr(spec, "divergence", None)
    if choice is None:
        hard = Divergence.from_module(plugins.load("divergences", "hard_cross_entropy"))
        return Objective(TokenSettings(hard, {}, ce_weight=1.0), {"objective": "cross_entropy"})
    assert isinstance(spec, Distill)
    require_lesson(spec)
    tokens = _settings(choice, spec.temperature, spec.ce_weight)
    identity = {
        "divergence": plugins.identity("divergences", choice.name, choice.options),
        **spec.model_dump(mode="json", include={"temperature", "ce_weight"}),
    }
    if (named := spec.token_weights) is not None:
        module = plugins.load("token_weights", named.name, named.options)
        tokens = replace(tokens, weigh=TokenWeight.from_module(module, named.options))
        identity["token_weights"] = plugins.identity("token_weights", named.name, named.options)
    if not spec.adds_to_divergence:
        return Objective(tokens, identity)
    require_writer(spec)
    if spec.policy_gradient is not None and spec.policy_gradient.reward is not None:
        plugins.load("rewards", spec.policy_gradient.reward)
    supervised, reference = spec.supervised, spec.reference
    return Objective(
        tokens,
        identity | identity_of_terms(spec),
        spec,
        None if supervised is None else _settings(supervised.divergence, 1.0, supervised.ce_weight),
        None if reference is None else _settings(reference.divergence, 1.0, 0.0),
    )


def _settings(
    choice: DivergenceChoice, temperature: float | Schedule, ce_weight: float | Schedule
) -> TokenSettings:
    """A divergence by its name. It refuses its options now, at both ends of what moves, and not in the first step."""
    module = plugins.load("divergences", choice.name, choice.options)
    options = {name: _moving(value) for name, value in choice.options.items()}
    divergence, _ = (
        Divergence.from_module(module, {name: ends(value)[end] for name, value in options.items()})
        for end in (0, 1)
    )
    return TokenSettings(divergence, options, temperature, ce_weight)


def yardstick() -> TokenLoss:
    """Forward KL at T = 1, measured at every validation of a stage with a teacher."""
    return TokenLoss(Divergence.from_module(plugins.load("divergences", "forward_kl")))


def require_signal(objective: Objective, name: str, provides: frozenset[str]) -> None:
    """Refuse a teacher whose signals a divergence is not right for, or that gives no whole distribution to a term.

    Raises:
        SignalError: names what is needed and what the teacher provides.
    """
    spec = objective.spec
    for option, divergence in objective.compared.items():
        if not divergence.supports & provides:
            raise SignalError(
                f"{divergence.name} supports {_words(divergence.supports)} signals, the teacher "
                f"provides {_words(provides) or 'none'}.",
                path=f"stages.{name}.{option}",
                fix="Choose another divergence, or another teacher.",
            )
    if spec is not None and spec.support is not None and "topk" not in objective.divergence.supports:
        raise SignalError(
            f"{objective.divergence.name} cannot be compared on some ids alone.",
            path=f"stages.{name}.support",
            fix="Remove it, or choose another divergence.",
        )
    whole = () if spec is None else ("support", "policy_gradient", "preference")
    for option in whole:
        if getattr(spec, option) is not None and "dense" not in provides:
            raise SignalError(
                f"needs the teacher's whole distribution, and it provides {_words(provides) or 'none'} signals.",
                path=f"stages.{name}.{option}",
                fix="Remove it, or train beside the teacher's weights.",
            )


def _words(kinds: frozenset[str]) -> str:
    return ", ".join(sorted(kinds))


def _moving(value: Any) -> Any:
    """A divergence's option as it is, or as the schedule that it spells."""
    return Schedule.model_validate(value) if isinstance(value, dict) else value
