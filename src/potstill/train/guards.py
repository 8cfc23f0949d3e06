"""Guards of a training on the student's own text: an alarm first, then a stop.

A pure function of the figures of past steps, which are sums over all processes: every process decides the same,
and a checkpoint holds all that a decision depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import TrainingStopped
from potstill.recipe.guards import Guards as Limits

WARM_UP = "put a short `distill` or `finetune` stage before this one"
MIX = "let it also learn from the rows (a lower on_policy_fraction, or keep_rows with `supervised`)"


@dataclass(frozen=True)
class Guard:
    """One figure of a step and how its limit is read.

    Args:
        figure: its name among the figures of a step.
        upper: whether the limit is the highest value, or the lowest.
        seen: the value and the limit in words, with {value}, {limit} and {steps}.
        drifted: likely cause and way out where the first window was healthy.
        cold: the same where it never was.
    """

    figure: str
    upper: bool
    seen: str
    drifted: str
    cold: str


GUARDS: Mapping[str, Guard] = {
    "repetition": Guard(
        "repetition",
        True,
        "{value:.0%} of the 4-grams in the student's own text repeat (limit {limit:.0%}, mean of {steps} steps)",
        f"The student found that loops are cheap to agree on: {MIX}, lower the learning rate, or write shorter "
        "rollouts.",
        f"It has done so from the first steps, as a cold student does: {WARM_UP}.",
    ),
    "truncation": Guard(
        "truncated",
        True,
        "{value:.0%} of the rollouts run into max_new_tokens (limit {limit:.0%}, mean of {steps} steps)",
        f"The student unlearns to stop: {MIX}, lower the learning rate, or raise max_new_tokens.",
        f"It never learnt to stop, as a cold student has not: {WARM_UP}; or raise max_new_tokens.",
    ),
    "length": Guard(
        "rollout_length",
        True,
        "rollouts are {value:.1f} times as long as at the start or in the rows (limit {limit:g}, mean of {steps} "
        "steps)",
        f"Length grows where every further token is rewarded: {MIX}, or normalise by length.",
        f"The student rambles: {WARM_UP}.",
    ),
    "entropy": Guard(
        "entropy_ratio",
        False,
        "the student's entropy is {value:.0%} of its teacher's on the rollouts (limit {limit:.0%}, mean of {steps} "
        "steps)",
        f"The student collapses onto few answers: {MIX}, take a divergence that covers modes (forward_kl, jsd), or "
        "lower the learning rate.",
        f"It was so from the first steps: {WARM_UP}.",
    ),
    "overlap": Guard(
        "overlap",
        False,
        "only {value:.0%} of the teacher's 16 most likely ids are among the student's (limit {limit:.0%}, mean of "
        "{steps} steps)",
        f"The student left the text that its teacher knows: {MIX}, or lower the learning rate.",
        f"It was so from the first steps: a cold student writes what its teacher knows nothing of; {WARM_UP}.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """A guard beyond its alarm, or beyond its limit (`stops`)."""

    guard: str
    value: float
    limit: float
    steps: int
    cold: bool  # it was so in the first window already
    stops: bool

    @property
    def seen(self) -> str:
        """What was measured, in words."""
        return GUARDS[self.guard].seen.format(value=self.value, limit=self.limit, steps=self.steps)

    @property
    def advice(self) -> str:
        """The likely cause, and what to change."""
        return GUARDS[self.guard].cold if self.cold else GUARDS[self.guard].drifted

    def event(self) -> dict[str, Any]:
        """The finding as a line of metrics."""
        kind = "stop" if self.stops else "alarm"
        return {
            "event": kind,
            "guard": self.guard,
            "value": self.value,
            "limit": self.limit,
            "seen": self.seen,
        }


@dataclass(frozen=True)
class Guards:
    """The guards of one training.

    Args:
        limits: of the recipe.
        stage: how the recipe calls the training.
        answer_tokens: scored tokens of each training row that has an answer.
        most: max_new_tokens of the rollouts.
    """

    limits: Limits
    stage: str
    answer_tokens: Sequence[int] = ()
    most: int | None = None

    def after(self, state: Mapping[str, Any], figures: Mapping[str, float]) -> dict[str, Any]:
        """The state behind one more step: the last values of each figure, and the mean of its first window."""
        seen, first = dict(state.get("seen", {})), dict(state.get("first", {}))
        for guard in GUARDS.values():
            if guard.figure not in figures:
                continue
            values = [*seen.get(guard.figure, ()), float(figures[guard.figure])][-self.limits.window :]
            seen[guard.figure] = values
            if len(values) == self.limits.window:
                first.setdefault(guard.figure, sum(values) / len(values))
        return {**state, "seen": seen, "first": first}

    def alarms(self, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
        """The findings beyond an alarm that was not given yet, and the state in which it was."""
        given = list(state.get("alarmed", ()))
        new = [
            finding for finding in self._findings(state) if not finding.stops and finding.guard not in given
        ]
        return {**state, "alarmed": given + [finding.guard for finding in new]}, new

    def stop(self, state: Mapping[str, Any]) -> Finding | None:
        """The first guard that is beyond its limit."""
        return next((finding for finding in self._findings(state) if finding.stops), None)

    def warning(self, finding: Finding) -> str:
        """An alarm in words."""
        return (
            f"{self.stage}: {finding.seen}; training stops there. {finding.advice} "
            f"{self.stage}.guards.{finding.guard}: null quiets this."
        )

    def stopped(self, finding: Finding, step: int) -> TrainingStopped:
        """The error that ends a training beyond a limit; a checkpoint is saved before."""
        return TrainingStopped(
            f"{self.stage} stopped at step {step}: {finding.seen}. A checkpoint is saved.",
            path=f"stages.{self.stage}.guards.{finding.guard}",
            value=finding.value,
            fix=f"{finding.advice} {self.stage}.guards.{finding.guard}=null goes on from the checkpoint as it is.",
        )

    def _findings(self, state: Mapping[str, Any]) -> Iterator[Finding]:
        for name, guard in GUARDS.items():
            limit, values = getattr(self.limits, name), state.get("seen", {}).get(guard.figure, ())
            values = values[-self.limits.window :]  # a checkpoint may hold those of a longer one
            if limit is None or len(values) < self.limits.window:
                continue
            mean = sum(values) / len(values)
            first = state["first"].get(guard.figure, mean)
            begun, value = (self._read(name, of, first) for of in (first, mean))
            if _beyond(guard, value, _alarm(name, guard, limit)):
                stops, cold = _beyond(guard, value, limit), _beyond(guard, begun, limit)
                yield Finding(name, value, limit, len(values), cold, stops)

    def _read(self, name: str, mean: float, first: float) -> float:
        """The mean of a figure, which its first window had as `first`, as its limit is read: lengths and truncation against what the rows have."""
        answers = self.answer_tokens
        if name == "length":
            usual = sum(answers) / len(answers) if answers else 0.0
            return mean / max(usual, first, 1.0)
        if name == "truncation" and answers and self.most is not None:
            expected = sum(count >= self.most for count in answers) / len(answers)
            return max(0.0, (mean - expected) / (1 - expected)) if expected < 1 else 0.0
        return mean


def _alarm(name: str, guard: Guard, limit: float) -> float:
    if not guard.upper:
        return min(1.0, 2 * limit)
    return (1 + limit) / 2 if name == "length" else limit / 2


def _beyond(guard: Guard, value: float, limit: float) -> bool:
    return value > limit if guard.upper else value < limit
