"""The metrics of an evaluate stage, from their names to what the stage calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from potstill.evaluate.subject import Metric
from potstill.recipe import plugins
from potstill.recipe.specs import MetricChoice
from potstill.types import Figure


def metrics_of(choices: Sequence[MetricChoice]) -> tuple[Metric, ...]:
    """Load the chosen metrics, and each of this package that costs nothing beside them.

    Raises:
        RecipeError: a metric from outside cannot be imported, or needs what no model gives.
    """
    metrics = [
        Metric.of(choice.name, plugins.load("evaluate", choice.name, choice.options), choice.options)
        for choice in choices
    ]
    needs = frozenset[str]().union(*(metric.needs for metric in metrics))
    names = {choice.name for choice in choices}
    for name in plugins.plugins("evaluate"):
        plugin = plugins.load("evaluate", name)
        if name not in names and getattr(plugin, "FREE", False) and needs >= plugin.NEEDS:
            metrics.append(Metric.of(name, plugin))
    return tuple(metrics)


def figures_of_ours() -> Mapping[str, Sequence[Figure]]:
    """The figures that each metric of this package gives, without values."""
    return {name: plugins.load("evaluate", name).FIGURES for name in plugins.plugins("evaluate")}
