"""Who writes the text that a stage trains on, and what the student writes with."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.devices import ranks
from potstill.errors import RecipeError
from potstill.generate import pushed, vllm_settings
from potstill.recipe import plugins
from potstill.recipe.defaults import settled
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.stages._module import DTYPES, Run
from potstill.stages._objective import Objective
from potstill.train import scoring
from potstill.train.kept import KeptSignals
from potstill.train.pushed import Pushed
from potstill.train.writer import Writer
from potstill.types import Strategy

WEIGHTS = ".weights-for-engine"  # hidden: no part of the artifact


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
        MachineError: its engine is not installed.
    """
    choice = getattr(spec, "strategy", None)
    if choice is not None and not plugins.is_outside(choice.name):
        strategy_of(spec)
        if choice.option("engine") == "vllm" and importlib.util.find_spec("vllm") is None:
            raise vllm_settings.missing(pushed.WANTED_BY)


def teacher_of(run: Run, strategy: Strategy) -> Teacher | None:
    """The teacher, asked once about a rollout that is trained on again.

    Passes of one in parts are made together, of a cache nothing is computed, and one that moves says something else
    later.
    """
    again = getattr(run.teacher, "sharded", False) or getattr(run.teacher, "moves", False)
    if run.teacher is None or again or not getattr(run.teacher, "live", True):
        return run.teacher
    return KeptSignals(run.teacher, strategy.rollouts)


def writer_of(
    run: Run, objective: Objective, module: nn.Module, teacher: Teacher | None, folder: Path
) -> Writer:
    """What the strategy writes with; drawn tokens are scored where the objective reads what both models say.

    `folder` is where the training is under way.
    """
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
        pushed=_pushed(run, folder),
    )


def _pushed(run: Run, folder: Path) -> Pushed | None:
    """The engine that the strategy names, which is started when it first writes; None where the student writes itself.

    Raises:
        RecipeError: vLLM cannot work in this process beside others.
    """
    choice = getattr(run.spec, "strategy", None)
    if choice is None or (engine := choice.option("engine")) in (None, "local"):
        return None
    dtype = DTYPES[run.spec.precision] or torch.float32
    if engine == "served":
        return Pushed(lambda: pushed.Served(choice.option("server")), folder / WEIGHTS, dtype)
    if ranks.world() > 1:
        raise RecipeError(
            f"vLLM cannot start in one of {ranks.world()} processes that train together.",
            path=f"stages.{run.spec.name}.strategy.{choice.name}.engine",
            fix=f"Use engine: served or local, or run with devices.processes=1 --until {run.spec.name}, then as it is.",
        )
    start = partial(
        pushed.InProcess,
        run.student.path / "student",
        str(dtype).removeprefix("torch."),
        float(choice.option("gpu_memory")),
    )
    return Pushed(start, folder / WEIGHTS, dtype)


def _model_of(teacher: Any) -> Any:
    return teacher.loaded().model
