"""The metrics of an evaluate stage, from their names to what the stage calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potstill.errors import RecipeError
from potstill.evaluate.subject import Metric
from potstill.recipe import plugins
from potstill.recipe.specs import MetricChoice
from potstill.types import Figure


def metrics_of(choices: Sequence[MetricChoice], task: str | None = None) -> tuple[Metric, ...]:
    """Load the chosen metrics, and each of this package that costs nothing beside them and fits the type of `task`.

    Raises:
        RecipeError: a metric from outside cannot be imported, needs what no model gives, or measures another type
            of task.
    """
    for choice in choices:
        if choice.name in plugins.plugins("evaluate") and not _fits(choice.name, task):
            types = ", ".join(sorted(plugins.load("evaluate", choice.name).TASKS))
            raise RecipeError(
                f"{choice.name} measures a task of type {types}, and the recipe's is {task or 'none'}.",
                path="evaluate.metrics",
                fix="Write the recipe's task, or leave the metric out: with a task it is measured by itself.",
            )
    metrics = [
        Metric.of(choice.name, plugins.load("evaluate", choice.name, choice.options), choice.options)
        for choice in choices
    ]
    needs = frozenset[str]().union(*(metric.needs for metric in metrics))
    names = {choice.name for choice in choices}
    for name in plugins.plugins("evaluate"):
        plugin = plugins.load("evaluate", name)
        free = getattr(plugin, "FREE", False) and _fits(name, task)
        if name not in names and free and needs >= plugin.NEEDS:
            metrics.append(Metric.of(name, plugin))
    return tuple(metrics)


def _fits(name: str, task: str | None) -> bool:
    """Whether a metric of this package measures answers of this type of task, None for free text."""
    types = getattr(plugins.load("evaluate", name), "TASKS", None)
    return types is None or task in types


def figures_of_ours() -> Mapping[str, Sequence[Figure]]:
    """The figures that each metric of this package gives, without values."""
    return {name: plugins.load("evaluate", name).FIGURES for name in plugins.plugins("evaluate")}
