"""What a training stage minimises, and its resolved settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from potstill.data.plan import plan_steps
from potstill.objectives.token import Divergence, TokenLoss, weigh_by
from potstill.recipe import resolve
from potstill.recipe.specs import Schedule, ends, value_at
from potstill.recipe.stages import Distill, Training
from potstill.train.loop import Settings
from potstill.types import Example

Value = TypeVar("Value")


def settled(value: Value | str) -> Value:
    """A value that was `auto` and is resolved by now."""
    assert value != "auto"
    return value  # type: ignore[return-value]


def settings_of(stage: Training, examples: Sequence[Example], seed: int) -> Settings:
    lengths, counts = [len(e.input_ids) for e in examples], [e.count for e in examples]
    budget = {
        "tokens_per_step": settled(stage.tokens_per_step),
        "micro_batch_tokens": settled(stage.micro_batch_tokens),
    }
    steps = stage.steps
    if steps is None:
        assert stage.epochs is not None
        whole, part = divmod(stage.epochs, 1)
        planned = [
            len(plan_steps(lengths, counts, **budget, seed=seed, epoch=e, packing=stage.packing))
            for e in range(int(whole) + 1)
        ]
        steps = max(1, sum(planned[:-1]) + round(part * planned[-1]))
    return Settings(
        steps=steps,
        learning_rate=settled(stage.learning_rate),
        **budget,
        schedule=stage.schedule,
        warmup=stage.warmup,
        weight_decay=stage.weight_decay,
        betas=stage.betas,
        max_grad_norm=stage.max_grad_norm or 0.0,
        validate_every=settled(stage.validate_every),
        checkpoint_every=settled(stage.checkpoint_every),
        patience=stage.patience,
        seed=seed,
        grad_scaler=stage.precision == "float16",
        best_by=stage.best_by,
        packing=stage.packing,
        normalize=stage.normalize,
    )


def objective_of(
    stage: Training, steps: int
) -> tuple[dict[str, Any], Callable[[int], TokenLoss], TokenLoss | None]:
    """What identifies the objective, the objective of a step, and the yardstick of validations."""
    if not isinstance(stage, Distill):
        hard = Divergence.from_module(resolve.load("divergences", "hard_cross_entropy"))
        loss = TokenLoss(hard, ce_weight=1.0)
        return {"objective": "cross_entropy"}, lambda step: loss, None
    module = resolve.load("divergences", stage.divergence.name, stage.divergence.options)
    options = {name: _moving(value) for name, value in stage.divergence.options.items()}
    divergence = Divergence.from_module(module, stage.divergence.options)
    _try_ends(divergence, options)
    balanced = max(ends(stage.ce_weight)) > 0
    weigh = None
    if stage.token_weights is not None:
        chosen = stage.token_weights
        named = resolve.load("token_weights", chosen.name, chosen.options)
        weigh = weigh_by(named, chosen.name, chosen.options)
    identity = {
        "divergence": [stage.divergence.name, stage.divergence.options],
        "temperature": stage.model_dump(mode="json")["temperature"],
        "ce_weight": stage.model_dump(mode="json")["ce_weight"],
        "strategy": [stage.strategy.name, stage.strategy.options],
    }
    if stage.token_weights is not None:
        identity["token_weights"] = [stage.token_weights.name, stage.token_weights.options]

    def loss_at(step: int) -> TokenLoss:
        fraction = step / max(1, steps - 1)
        return TokenLoss(
            replace(divergence, options={k: _at(v, fraction) for k, v in options.items()}),
            value_at(stage.temperature, fraction),
            value_at(stage.ce_weight, fraction),
            weigh=weigh,
            balanced=balanced,
        )

    forward = Divergence.from_module(resolve.load("divergences", "forward_kl"))
    return identity, loss_at, TokenLoss(forward)


def _moving(value: Any) -> Any:
    """A divergence's option as it is, or as the schedule that it spells."""
    return Schedule.model_validate(value) if isinstance(value, dict) else value


def _at(value: Any, fraction: float) -> Any:
    return value_at(value, fraction) if isinstance(value, Schedule) else value


def _try_ends(divergence: Divergence, options: Mapping[str, Any]) -> None:
    """Let the divergence refuse its options now, at both ends of what moves, and not in the first step."""
    even = torch.full((1, 2), 0.5).log()
    for fraction in (0.0, 1.0):
        divergence.value(even, even, **{name: _at(value, fraction) for name, value in options.items()})
