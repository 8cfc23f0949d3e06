"""Who writes the text that a stage trains on, and what the student writes with."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from potstill.errors import RecipeError
from potstill.recipe import plugins
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.stages._module import DTYPES, Run
from potstill.stages._objective import Objective
from potstill.train import scoring
from potstill.train.kept import KeptSignals
from potstill.train.loop import settled
from potstill.train.writer import Writer
from potstill.types import Strategy


def identity_of(spec: Training) -> Any:
    """What identifies a stage's strategy in its artifact's key; None where it has none."""
    choice = getattr(spec, "strategy", None)
    return None if choice is None else plugins.identity(choice.family, choice.name, choice.options)


def strategy_of(spec: Training) -> Strategy:
    """The strategy of a stage; rows as they are where it has none.

    Raises:
        RecipeError: the strategy refuses an option; names it.
    """
    choice = getattr(spec, "strategy", None)
    if choice is None:
        return plugins.load("strategies", "offline").build()
    module = plugins.load(choice.family, choice.name, choice.options)
    try:
        return module.build(**choice.options)
    except RecipeError as error:
        path = f"stages.{spec.name}.strategy.{choice.name}.{error.path}"
        raise RecipeError(error.message, path=path, fix=error.fix, value=error.value) from error


def try_strategy(spec: Training) -> None:
    """Refuse options before a run; one from outside, which may open anything when it is built, is left for then.

    Raises:
        RecipeError: as `strategy_of` does.
    """
    choice = getattr(spec, "strategy", None)
    if choice is not None and not plugins.is_outside(choice.name):
        strategy_of(spec)


def teacher_of(run: Run, strategy: Strategy) -> Teacher | None:
    """The teacher, asked once about a rollout that is trained on again. Passes of one in parts are made together."""
    if run.teacher is None or getattr(run.teacher, "sharded", False):
        return run.teacher
    return KeptSignals(run.teacher, strategy.rollouts)


def writer_of(run: Run, objective: Objective, module: nn.Module, teacher: Teacher | None) -> Writer:
    """What the strategy writes with; drawn tokens are scored where the objective reads what both models say."""
    reader, tokens = run.context.setup.readers.student, settled(run.spec.micro_batch_tokens)
    scored = partial(
        scoring.score,
        module,
        teacher,
        pad_id=run.pad_id,
        micro_batch_tokens=tokens,
        packed=run.spec.packing,
    )
    return Writer(
        module,
        pad_id=run.pad_id,
        packed=run.spec.packing,
        micro_batch_tokens=tokens,
        seed=run.context.seed,
        steps=run.steps,
        stop_ids=reader.stop_ids,
        vocabulary=run.vocabulary,
        unused=[index for index in reader.unused_ids if index < run.vocabulary],
        teacher=partial(_model_of, run.teacher) if hasattr(run.teacher, "loaded") else None,
        autocast=DTYPES[run.spec.precision],
        batch_rows=128 if run.device.type == "cuda" else 32,
        scored=scored if objective.reads_drawn(run.steps) else None,
    )


def _model_of(teacher: Any) -> Any:
    return teacher.loaded().model
