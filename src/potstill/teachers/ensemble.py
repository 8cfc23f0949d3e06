"""Several teachers that are asked as one: an average of their distributions, or the sum of their losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from potstill.errors import RecipeError
from potstill.teachers._context import TeacherContext
from potstill.teachers._ensemble import EnsembleTeacher
from potstill.teachers._members import member_of, require_one_vocabulary, require_weighable


def build(
    context: TeacherContext,
    *,
    ensemble: list,
    combine: Literal["auto", "probabilities", "log_probabilities", "losses"] = "auto",
    weigh: Literal["fixed", "confidence", "gold"] = "fixed",
    route: str | None = None,
    writes: str = "mixture",
    one_at_a_time: bool = False,
) -> EnsembleTeacher:
    """Teachers of one vocabulary. Reads their tokenizers and configs only.

    Args:
        ensemble: two or more teachers as a recipe writes them, each with four more keys: `name`; `weight`, above 0
            and 1 by default; `temperature`, which calibrates it before anything is averaged; and, beside `route`,
            `rows`, the values for which it is asked. One without `rows` is asked where no other one is.
        combine: probabilities averages what each says, log_probabilities is a product of experts, losses sums the
            divergence from each; auto follows the divergence of the stages.
        weigh: fixed by `weight`; confidence times exp(-H) with the entropy H of what a teacher says at a token; gold
            times the probability that it gives the token of the text, where data or a teacher wrote that.
        route: the column of the rows that says which teachers are asked about a row.
        writes: who writes the answers: mixture, which draws each token from the average, or a teacher's name.
        one_at_a_time: keep one teacher's weights in memory, and load each anew for every batch.

    Raises:
        RecipeError: an option cannot be as it is, or a teacher gives no distribution; names it.
        VocabularyError: two teachers mean different tokens by an id.
    """
    if len(ensemble) < 2 or not all(isinstance(value, Mapping) for value in ensemble):
        raise RecipeError(
            "lists at least two teachers, each a mapping.",
            path="teacher.ensemble",
            fix="Write [{model: A}, {model: B}], or name a single teacher without ensemble.",
        )
    if context.member is None:
        raise RecipeError("cannot be built without the recipe's way to build a teacher.", path="teacher")
    members = [member_of(value, number, context, route) for number, value in enumerate(ensemble)]
    names = Counter(member.name for member in members)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise RecipeError(
            f"{names[twice]} teachers are called {twice}.",
            path="teacher.ensemble",
            fix="Give each a name of its own: {name: …, model: …}.",
        )
    if route is not None and context.sharded:
        raise RecipeError(
            "cannot work with a teacher in parts: each of its passes needs all processes, whatever rows they have.",
            path="teacher.route",
            fix="Set devices.teacher: whole.",
        )
    require_one_vocabulary(members)
    require_weighable(members, weigh)
    average, why = context.average if combine == "auto" else (combine, "as the recipe says")
    return EnsembleTeacher(
        members, average, why, weigh=weigh, route=route, writes=writes, one_at_a_time=one_at_a_time
    )
