"""Make the teacher that a recipe names, and those that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe import plugins
from potstill.recipe.inputs import TeacherHolder
from potstill.recipe.problems import describe
from potstill.recipe.stages import StageSpec
from potstill.signals.teacher import Teacher
from potstill.teachers._context import TeacherContext

Plugin = tuple[str, dict[str, Any]]


def build_teacher(plugin: Plugin, context: TeacherContext) -> Teacher:
    """Build a teacher by its plug-in's name and options; one that is made of others is given the way to build them."""

    def member(value: Any, path: str) -> Teacher:
        return build_teacher(_read(value, path), context)

    name, options = plugin
    module = plugins.load("teachers", name, options)
    teacher: Teacher = module.build(replace(context, member=member), **options)
    return teacher


def _read(value: Any, path: str) -> Plugin:
    """The plug-in and options of a member, checked as the teacher of a recipe is.

    Raises:
        RecipeErrors: lists everything wrong with it, by its place in the recipe.
    """
    raw = {"teacher": value}
    try:
        plugin = TeacherHolder.model_validate(raw).teacher.plugin
    except ValidationError as error:
        problems = describe(error, raw, TeacherHolder)
        raise RecipeErrors(
            [
                RecipeError(
                    problem.message,
                    fix=problem.fix,
                    path=problem.path.replace("teacher", path, 1),
                    value=problem.value,
                )
                for problem in problems
            ]
        ) from None
    return plugin


def average_for(stages: Sequence[StageSpec]) -> tuple[str, str]:
    """Which average of several teachers suits the stages that compare distributions, and why.

    The average of probabilities minimises the weighted sum of forward KLs, the renormalised average of
    log-probabilities that of reverse KLs, which a policy gradient of log p / q follows too.
    """
    suits = {stage.name: _suited(stage) for stage in stages if "distribution" in stage.needs}
    product = [name for name, average in suits.items() if average == "log_probabilities"]
    if product and len(product) == len(suits):
        return "log_probabilities", "right for reverse KL: a product of experts, in which each has a veto"
    if product:
        others = ", ".join(name for name in suits if name not in product)
        return (
            "probabilities",
            f"right for forward KL, as {others} compares; {', '.join(product)} compares by reverse KL, for which "
            "combine: log_probabilities is right, and one run has one distribution",
        )
    return "probabilities", "right for forward KL"


def _suited(stage: StageSpec) -> str:
    if getattr(stage, "policy_gradient", None) is not None:
        return "log_probabilities"
    choice = getattr(stage, "divergence", None)
    return (None if choice is None else choice.constant("AVERAGE")) or "probabilities"
