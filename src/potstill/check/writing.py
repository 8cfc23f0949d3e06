"""How much a stage's student will write, reckoned from the rows before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from potstill.console import clock
from potstill.recipe.stages import StageSpec
from potstill.recipe.training import Training
from potstill.stages._own_text import VALIDATED, on_policy
from potstill.stages._train import steps_of
from potstill.stages.distill import Distill
from potstill.train.loop import plan_epoch
from potstill.types import Example

PLANNED = 10_000  # steps; planning more of them takes seconds


@dataclass(frozen=True)
class Amount:
    """What a stage's student writes with all of its answers at full length: a bound, unless it is `reckoned`.

    Args:
        steps: those that write; text that is trained on again is written once.
        prompts: of these steps together, by the plan that the run follows.
        samples: answers to a prompt.
        tokens: most of an answer.
        measured: answers to validation prompts, where these choose the weights.
        reckoned: length that answers of the teacher are taken to have, which decides how many rows a step holds, so
            that the amount is no bound; 0 where that is known.
        always: whether every such step writes.
    """

    steps: int
    prompts: int
    samples: int
    tokens: int
    measured: int = 0
    reckoned: int = 0
    always: bool = True

    @property
    def in_all(self) -> int:
        """Tokens."""
        return (self.prompts * self.samples + self.measured) * self.tokens

    def in_words(self, pace: float | None) -> str:
        """The amount and what it takes, at `pace` seconds a token; None is not known."""
        takes = "" if pace is None else f", {clock(self.in_all * pace)} at this pace"
        samples = f" × {self.samples} samples" if self.samples > 1 else ""
        prompts = f"{self.prompts} prompts in {self.steps} steps{samples} × {self.tokens} tokens"
        measured = f", and {self.measured} answers to validation prompts" if self.measured else ""
        less = "" if self.always else "; less, since some steps write nothing"
        more = (
            f"; more, with more prompts in a step, where the teacher's answers are shorter than {self.reckoned} tokens"
            if self.reckoned
            else ""
        )
        most = "" if self.reckoned else " at most"
        return f"the stage writes {self.in_all} tokens{most}{takes} ({prompts}{measured}{less}{more})"


def amounts(
    stages: Sequence[StageSpec],
    rows: Sequence[Example],
    own: Mapping[str, Sequence[Example]],
    *,
    reckoned: int,
    seed: int,
) -> dict[str, Amount]:
    """The amount of every stage whose student writes and says how long an answer may be.

    Args:
        stages: without an `auto`.
        rows: what the recipe trains on.
        own: the rows of stages that bring their own.
        reckoned: the length that answers which the teacher has yet to write have in `rows`; 0 where all are there.
    """
    return {
        spec.name: _amount(spec, planned, 0 if spec.name in own else reckoned, seed)
        for stage in stages
        if isinstance(stage, Training)
        and (spec := on_policy(stage)) is not None
        and spec.new_tokens
        and (planned := own.get(spec.name, rows))
    }


def _amount(spec: Distill, rows: Sequence[Example], reckoned: int, seed: int) -> Amount:
    strategy = spec.strategy
    at_once = int(strategy.option("collect") or 1)
    training = steps_of(spec, rows, seed)
    steps = at_once * math.ceil(training / spec.passes / at_once)
    return Amount(
        steps=steps,
        prompts=_prompts(spec, rows, steps, seed),
        samples=int(strategy.option("samples") or 1),
        tokens=spec.new_tokens,
        measured=_measured(spec, training),
        reckoned=reckoned if spec.steps is not None else 0,  # epochs ask each prompt as often, however long
        always=strategy.option_named("STUDENT_WRITES") == 1 and not strategy.option("replay"),
    )


def _prompts(spec: Distill, rows: Sequence[Example], steps: int, seed: int) -> int:
    """The rows of the first steps of the plan; of a long one, as many as its first `PLANNED` steps let expect."""
    planned, sizes = min(steps, PLANNED), list[int]()
    for epoch in count():
        sizes += [sum(map(len, step)) for step in plan_epoch(spec, rows, seed, epoch)]
        if len(sizes) >= planned:
            break
    return math.ceil(sum(sizes[:planned]) * steps / planned)


def _measured(spec: Distill, steps: int) -> int:
    """Answers that validations ask for, the one before the training included."""
    if spec.best_by != "own_kl":
        return 0
    assert isinstance(spec.validate_every, int)
    assert isinstance(spec.validation_rows, int)
    return min(spec.validation_rows, VALIDATED) * (1 + math.ceil(steps / spec.validate_every))
