"""What a metric is given: one model, and everything that was computed once for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from potstill.data.questions import Question
from potstill.data.task import Task
from potstill.errors import RecipeError
from potstill.evaluate import stats
from potstill.evaluate.scores import Scores
from potstill.types import Example, Figure

NEEDS = frozenset({"scores", "answers"})


@dataclass(frozen=True)
class Answer:
    """One greedy answer. `stopped` says that the model ended it itself; `tokens` counts its ids."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Subject:
    """One model under measurement, on the same held-out rows as every other.

    `scores` and `answers` are there for the metrics that need them; `answers` follow `questions`.
    """

    role: str  # teacher, before, after, control, "after <stage>"
    examples: Sequence[Example] = ()
    questions: Sequence[Question] = ()
    scores: Scores | None = None
    answers: Sequence[Answer] = ()
    seconds: float = 0.0  # that writing all answers took
    task: Task | None = None  # what the answers have to be
    wrote_before: bool = False  # the answers are those that the teacher wrote before training
    foreign: str = ""  # why the teacher's distribution cannot be compared with this model's
    resamples: int = 2000
    seed: int = 0

    def ratio(
        self,
        figure: Figure,
        numerators: Sequence[float],
        denominators: Sequence[float] | None = None,
        transform: stats.Transform | None = None,
    ) -> Figure:
        """`figure` with sum / sum, its interval and n; one pair a prompt, and a mean without denominators."""
        return stats.ratio(
            numerators,
            [1.0] * len(numerators) if denominators is None else denominators,
            figure=figure,
            resamples=self.resamples,
            seed=self.seed,
            transform=transform,
        )

    def statistic(
        self, figure: Figure, counts: Sequence[Sequence[float]], function: stats.Transform
    ) -> Figure:
        """`figure` of counts summed over prompts, where it is no ratio of two of them."""
        return stats.statistic(counts, function, figure=figure, resamples=self.resamples, seed=self.seed)

    def token_mean(
        self,
        figure: Figure,
        column: str = "",
        *,
        teacher: float | None = None,
        transform: stats.Transform | None = None,
    ) -> Figure:
        """`figure` as the mean over scored tokens of a column of the scores, its key where none is named.

        `teacher` is the teacher's value against itself.
        """
        if self.role == "teacher" and teacher is not None:
            return replace(figure, value=teacher, reason="by definition")
        column = column or figure.key
        if self.scores is None or column not in self.scores.sums:
            return replace(figure, reason=self.foreign or "the models were not compared token by token")
        return self.ratio(figure, self.scores.sums[column], self.scores.tokens, transform)


@dataclass(frozen=True)
class Metric:
    """A plug-in of `evaluate/` with its options, as the evaluate stage calls it."""

    name: str
    function: Callable[..., Sequence[Figure]]
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    of_text: bool = False  # a teacher that writes nothing here is measured by what it wrote before training
    details: Callable[[Subject], Mapping[str, Any]] | None = None  # what stands beside the figures

    @classmethod
    def of(cls, name: str, plugin: Any, options: Mapping[str, Any] | None = None) -> Metric:
        """From a plug-in's `measure` and NEEDS.

        Raises:
            RecipeError: it needs what no model gives.
        """
        needs = frozenset(getattr(plugin, "NEEDS", ()))
        if unknown := needs - NEEDS:
            raise RecipeError(
                f"the metric {name} needs {', '.join(sorted(unknown))}, which no model gives.",
                fix=f"Its NEEDS may hold {' and '.join(sorted(NEEDS))}.",
                path="metrics",
            )
        of_text, details = bool(getattr(plugin, "OF_TEXT", False)), getattr(plugin, "details", None)
        return cls(name, plugin.measure, dict(options or {}), needs, of_text, details)

    def measure(self, subject: Subject) -> Sequence[Figure]:
        """The metric's figures of one model; one that is not finite has no value but a reason.

        Raises:
            RecipeError: a figure's key is one that summary.json keeps for itself.
        """
        figures = []
        for figure in self.function(subject, **self.options):
            if figure.key == "n" or figure.key.endswith("_reason"):
                raise RecipeError(
                    f"the metric {self.name} gives {figure.key}, which summary.json keeps for itself.",
                    fix="Give its figure another key.",
                    path="metrics",
                )
            if figure.value is not None and not math.isfinite(figure.value):
                reason = f"not a finite number ({figure.value})"
                figure = replace(figure, value=None, low=None, high=None, reason=reason)
            figures.append(figure)
        return figures
