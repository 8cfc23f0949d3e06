"""One loop around the step: schedule, clipping, validation, checkpoints, and the cursor."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from potstill.data.plan import Step, plan_steps, shard
from potstill.devices import ranks
from potstill.errors import Interrupted, TrainingStopped
from potstill.models.beside import as_when_drawn
from potstill.objectives.terms import Terms
from potstill.recipe.defaults import settled
from potstill.recipe.training import Training
from potstill.signals.teacher import Teacher
from potstill.train import parallel
from potstill.train.guards import Guards
from potstill.train.optimizer import learning_rate_at, make_optimizer
from potstill.train.pace import Pace, due
from potstill.train.step import StepResult, accumulate, each_row_once, one_row_each
from potstill.types import Example, Sampler, Strategy

log = logging.getLogger("potstill")

LOWEST_SCALE = 2.0**-10  # a gradient that overflows fp16 below it is infinite at any scale


@dataclass
class Progress:
    """Where a run stands; everything a checkpoint must remember besides tensors."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    worse_in_a_row: int = 0
    best_weights: Mapping[str, str] = field(default_factory=dict)  # the hashes of their files
    validation_due: bool = False
    loss_scale: float = 65536.0
    strategy: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Hooks:
    """What a loop calls outside itself.

    Args:
        event: receives one flat dict a step and a validation; rank 0 writes it.
        validate: metrics of the student on validation rows; by `best_by` the best weights are kept, or the last.
        keep_best: keeps the weights, the best so far.
        save: writes a checkpoint; without an optimizer the last one of a training.
        should_stop: polled every step; True saves and ends.
        stepped: called behind each optimizer step with its number, before anything is measured or saved.
    """

    event: Callable[[Mapping[str, Any]], None] = lambda event: None
    validate: Callable[[], Mapping[str, float]] | None = None
    keep_best: Callable[[Progress], None] = lambda progress: None
    save: Callable[[Progress, torch.optim.Optimizer | None], None] = lambda progress, optimizer: None
    should_stop: Callable[[], bool] = lambda: False
    stepped: Callable[[int], None] = lambda step: None


def plan_epoch(spec: Training, examples: Sequence[Example], seed: int, epoch: int) -> list[Step]:
    """The optimizer steps of one epoch, each as its micro-batches of indices into `examples`."""
    return plan_steps(
        [example.planned[0] for example in examples],
        [example.planned[1] for example in examples],
        tokens_per_step=settled(spec.tokens_per_step),
        micro_batch_tokens=settled(spec.micro_batch_tokens),
        seed=seed,
        epoch=epoch,
        packing=spec.packing,
    )


def train(
    module: nn.Module,
    examples: Sequence[Example],
    teacher: Teacher | None,
    strategy: Strategy,
    sampler: Sampler,
    loss_at: Callable[[int], Terms],
    spec: Training,
    hooks: Hooks,
    *,
    seed: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
    guards: Guards | None = None,
) -> Progress:
    """Train until `spec.steps`, patience or a stop. Resumes exactly from `progress` and `optimizer`.

    `spec` holds the options of the stage, none of them `auto` or in epochs any more; `seed` orders the rows.

    Raises:
        TrainingStopped: a value is not finite, nothing is scored, or a guard found its limit passed.
    """
    steps, validate_every = settled(spec.steps), settled(spec.validate_every)
    pace = Pace(settled(spec.checkpoint_every))
    optimizer = optimizer or make_optimizer(module, spec)
    progress = progress or Progress()
    strategy.restore(progress.strategy)
    if spec.normalize == "sequence_mean":
        examples = one_row_each(examples)
    device = next(module.parameters()).device
    scaler = torch.amp.GradScaler(
        device.type, init_scale=progress.loss_scale, enabled=spec.precision == "float16"
    )
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    if progress.validation_due and hooks.validate:
        _validate(hooks, progress, optimizer, spec.best_by, strategy)
    if guards is not None and progress.step < steps and (found := guards.stop(progress.guards)):
        raise guards.stopped(found, progress.step)  # of the process before, and nothing has changed
    module.train()
    if sampler.scores:
        as_when_drawn(module)
    stopped = False
    for rows in (
        ()
        if _tired(progress, spec)
        else _coming_steps(examples, spec, seed, progress, strategy, getattr(teacher, "expect", None))
    ):
        started = time.monotonic()
        batches = list(strategy.batches(sampler, rows))
        progress.step_in_epoch += bool(rows)
        if not batches:  # it collects
            progress.seconds += time.monotonic() - started
            progress.strategy = strategy.state()
            if stopped := ranks.anyone(hooks.should_stop()):
                hooks.save(progress, optimizer)
                break
            continue
        if spec.normalize == "sequence_mean":
            batches = [each_row_once(batch) for batch in batches]
        rate = learning_rate_at(spec, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        result = accumulate(module, teacher, batches, loss_at(progress.step), scaler=scaler)
        if result is None:
            log.warning("step %d scores no token of any weight and is skipped", progress.step + 1)
            continue
        scaler.unscale_(optimizer)
        norm = parallel.clip(trained, spec.max_grad_norm)
        if math.isfinite(norm) or not scaler.is_enabled():  # a scaler skips what overflowed
            _require_usable(progress, result, norm)
        scaler.step(optimizer)
        scaler.update()
        progress.loss_scale = scaler.get_scale()
        if scaler.is_enabled() and progress.loss_scale < LOWEST_SCALE:
            raise TrainingStopped(
                f"every gradient up to step {progress.step + 1} overflowed, at a loss scale of {progress.loss_scale:.2g} too.",
                fix="Use precision: bfloat16 or float32, or look for rows with extreme logits.",
            )
        progress.step += 1
        hooks.stepped(progress.step)
        progress.tokens += result.tokens
        seconds = time.monotonic() - started
        progress.seconds += seconds
        means = {**result.means(), **strategy.figures()}
        strategy.observe(means)
        progress.strategy = strategy.state()
        hooks.event(
            {"event": "step", "step": progress.step, "epoch": progress.epoch, **means, "grad_norm": norm}
            | {"learning_rate": rate, "tokens": result.tokens, "seconds": seconds}
        )
        if result.teacher_weights:
            hooks.event(
                {"event": "teacher_weights", "step": progress.step, "rows": dict(result.teacher_weights)}
            )
        if guards is not None:
            _alarm(guards, progress, means, hooks)
        last = progress.step >= steps
        if hooks.validate and (last or due(progress.step, validate_every)):
            _validate(hooks, progress, optimizer, spec.best_by, strategy)
        if last:
            break
        if guards is not None and (found := guards.stop(progress.guards)):
            hooks.event({**found.event(), "step": progress.step})
            hooks.save(progress, optimizer)
            raise guards.stopped(found, progress.step)
        stopped = ranks.anyone(hooks.should_stop())
        if pace.due(progress.step) or stopped:
            hooks.save(progress, optimizer)
        if stopped or _tired(progress, spec):
            break
    if not stopped:
        hooks.save(progress, None)
    return progress


def _alarm(guards: Guards, progress: Progress, figures: Mapping[str, float], hooks: Hooks) -> None:
    """Take a step's figures into account, and warn once of each that comes near its limit."""
    progress.guards, found = guards.alarms(guards.after(progress.guards, figures))
    for finding in found:
        log.warning("%s", guards.warning(finding))
        hooks.event({**finding.event(), "step": progress.step})


def _tired(progress: Progress, spec: Training) -> bool:
    return spec.patience is not None and progress.worse_in_a_row > spec.patience


def _validate(
    hooks: Hooks,
    progress: Progress,
    optimizer: torch.optim.Optimizer,
    best_by: str,
    strategy: Strategy,
) -> None:
    """Measure, report, and keep the best weights. A stop saves, and measures after a resume."""
    assert hooks.validate is not None
    progress.validation_due = True
    try:
        measured = dict(hooks.validate())
    except Interrupted:
        hooks.save(progress, optimizer)
        raise
    progress.validation_due = False
    strategy.validated(measured)
    progress.strategy = strategy.state()
    if best_by == "last":
        better, progress.best_step = True, progress.step
    elif better := measured[best_by] < progress.best:
        progress.best, progress.best_step, progress.worse_in_a_row = measured[best_by], progress.step, 0
        hooks.keep_best(progress)
    else:
        progress.worse_in_a_row += 1
    hooks.event({"event": "validation", "step": progress.step, "best": better, **measured})


def _require_usable(progress: Progress, result: StepResult, norm: float) -> None:
    if not math.isfinite(norm):
        raise TrainingStopped(
            f"the gradient of step {progress.step + 1} is {norm}.",
            fix="Lower the learning rate, or look for rows with extreme logits.",
        )
    if progress.step == 0 and norm == 0.0:
        log.warning(
            "the first gradient is exactly zero (loss %.3g): the student already equals its teacher, "
            "or nothing that is trained reaches the loss",
            result.loss / result.weight,
        )


def _coming_steps(
    examples: Sequence[Example],
    spec: Training,
    seed: int,
    progress: Progress,
    strategy: Strategy,
    expect: Callable[[Iterator[list[Example]]], None] | None,
) -> Iterator[list[list[Example]]]:
    """This rank's micro-batches of each coming step, from the cursor in `progress` on.

    Nothing for a step that the strategy holds the rows of. A teacher that reads ahead is told those of an epoch.
    """
    lengths = [example.planned[0] for example in examples]
    rank, world = ranks.rank(), ranks.world()

    def mine(step: Step) -> list[list[Example]]:
        share = step if world == 1 else shard(step, rank, world, lengths=lengths)
        return [[examples[row] for row in micro] or [examples[step[0][0]].silent()] for micro in share]

    while progress.step < settled(spec.steps):
        before, began = progress.step, progress.step_in_epoch
        plan = plan_epoch(spec, examples, seed, progress.epoch)[progress.step_in_epoch :]
        if expect is not None:
            expect(micro for step in plan for micro in mine(step))
        for step in plan:
            while strategy.holds():
                yield []
            yield mine(step)
        while strategy.holds():
            yield []
        if progress.step == before and began == 0 and not strategy.rollouts():
            raise TrainingStopped(
                f"no token was scored in all of epoch {progress.epoch + 1}.",
                fix="Look at the rows: potstill check.",
            )
        progress.epoch += 1
        progress.step_in_epoch = 0
