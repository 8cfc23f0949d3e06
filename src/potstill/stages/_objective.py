"""What a training stage minimises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from potstill.errors import SignalError
from potstill.objectives.token import Divergence, TokenLoss, TokenWeight
from potstill.recipe import plugins
from potstill.recipe.specs import Schedule, ends, value_at
from potstill.recipe.training import Training


@dataclass(frozen=True)
class Objective:
    """The loss of a stage, from its options.

    `options` are the divergence's, schedules included. `identity` is what tells two objectives apart.
    """

    divergence: Divergence
    options: Mapping[str, Any]
    identity: Mapping[str, Any]
    temperature: float | Schedule = 1.0
    ce_weight: float | Schedule = 0.0
    weigh: TokenWeight | None = None

    def at(self, step: int, steps: int) -> TokenLoss:
        """The loss of optimizer step `step` (0-based) out of `steps`: what moves has its value there."""
        fraction = step / max(1, steps - 1)
        options = {name: value_at(value, fraction) for name, value in self.options.items()}
        return TokenLoss(
            replace(self.divergence, options=options),
            value_at(self.temperature, fraction),
            value_at(self.ce_weight, fraction),
            weigh=self.weigh,
            balanced=max(ends(self.ce_weight)) > 0,
        )


def objective_of(spec: Training) -> Objective:
    """The objective of a training stage: its divergence, or cross-entropy where it compares nothing.

    Raises:
        RecipeError: the divergence or the token weight refuses its options.
    """
    choice = getattr(spec, "divergence", None)
    if choice is None:
        hard = Divergence.from_module(plugins.load("divergences", "hard_cross_entropy"))
        return Objective(hard, {}, {"objective": "cross_entropy"}, ce_weight=1.0)
    module = plugins.load("divergences", choice.name, choice.options)
    options = {name: _moving(value) for name, value in choice.options.items()}
    # The divergence refuses its options now, at both ends of what moves, and not in the first step.
    divergence, _ = (
        Divergence.from_module(module, {name: ends(value)[end] for name, value in options.items()})
        for end in (0, 1)
    )
    identity = {
        "divergence": plugins.identity("divergences", choice.name, choice.options),
        **spec.model_dump(mode="json", include={"temperature", "ce_weight"}),
    }
    weigh, named = None, getattr(spec, "token_weights", None)
    if named is not None:
        module = plugins.load("token_weights", named.name, named.options)
        weigh = TokenWeight.from_module(module, named.options)
        identity["token_weights"] = plugins.identity("token_weights", named.name, named.options)
    return Objective(divergence, options, identity, spec.temperature, spec.ce_weight, weigh)  # type: ignore[attr-defined]


def yardstick() -> TokenLoss:
    """Forward KL at T = 1, measured at every validation of a stage with a teacher."""
    return TokenLoss(Divergence.from_module(plugins.load("divergences", "forward_kl")))


def require_signal(objective: Objective, name: str, provides: frozenset[str]) -> None:
    """Refuse a teacher whose signals the divergence is not right for.

    Raises:
        SignalError: names what the divergence supports and what the teacher provides.
    """
    if not objective.divergence.supports & provides:
        raise SignalError(
            f"{objective.divergence.name} supports {_words(objective.divergence.supports)} signals, the teacher "
            f"provides {_words(provides) or 'none'}.",
            path=f"stages.{name}.divergence",
            fix="Choose another divergence, or another teacher.",
        )


def _words(kinds: frozenset[str]) -> str:
    return ", ".join(sorted(kinds))


def _moving(value: Any) -> Any:
    """A divergence's option as it is, or as the schedule that it spells."""
    return Schedule.model_validate(value) if isinstance(value, dict) else value
