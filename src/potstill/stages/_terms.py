"""The terms that a distill stage adds to its divergence, as its recipe asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from potstill.errors import RecipeError
from potstill.objectives.by_origin import ByOrigin
from potstill.objectives.policy_gradient import PolicyGradient, Reward
from potstill.recipe import plugins
from potstill.recipe.on_policy import PolicyGradientSpec
from potstill.recipe.specs import Choice, ends
from potstill.signals.teacher import Teacher
from potstill.stages.distill import Distill

KEEP = "Write strategy: {on_policy: {keep_rows: true}}"


@dataclass(frozen=True)
class Beside:
    """What terms read besides student and teacher.

    Args:
        before: the student as it was before training; needed with `reference`.
        in_parts: whether each process has a part of it.
        autocast: dtype of the student's forward pass.
        special_ids: special tokens that end no answer.
        decode: text of ids; needed with a reward.
    """

    before: Teacher | None = None
    in_parts: bool = False
    autocast: torch.dtype | None = None
    special_ids: tuple[int, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None


def require_writer(spec: Distill) -> None:
    """Refuse terms whose text is in no step: the student's where it writes none, rows where none are kept, pairs.

    Raises:
        RecipeError: names the term and the strategy.
    """
    if spec.terms and not spec.strategy.student_writes:
        raise RecipeError(
            f"has no text of the student's to read with strategy {spec.strategy.name}.",
            path=f"stages.{spec.name}.{spec.terms[0]}",
            fix="Set strategy: on_policy, or remove this.",
        )
    strategy = spec.strategy
    beside, replayed = strategy.option_named("KEEPS_ROWS"), strategy.option("replay")
    if spec.preference is not None and (not beside or replayed):
        raise RecipeError(
            "has no pairs where the student's answers come from earlier steps."
            if beside
            else "has no pairs where the rows' own answers are not in the step beside the student's.",
            path=f"stages.{spec.name}.preference",
            fix="Leave replay out, or remove this." if beside else f"{KEEP}, or remove this.",
        )
    if spec.supervised is not None and strategy.option_named("STUDENT_WRITES") == 1 and beside is False:
        raise RecipeError(
            "has no text to read: every step holds the student's answers alone.",
            path=f"stages.{spec.name}.supervised",
            fix=f"{KEEP}, or a lower on_policy_fraction, or remove this.",
        )


def require_lesson(spec: Distill) -> None:
    """Refuse a student that is its own teacher and reads no more, where nothing else is minimised.

    Raises:
        RecipeError: both start equal, so that no gradient ever moves them.
    """
    gradient = spec.policy_gradient
    other = spec.supervised or spec.preference or max(ends(spec.ce_weight)) > 0
    if spec.self_teacher is None or spec.privileged is not None or other:
        return
    if gradient is None or gradient.reward is None:
        raise RecipeError(
            "says what the student says already: both start equal and read the same, so nothing is ever learnt.",
            path=f"stages.{spec.name}.self_teacher",
            fix="Set privileged, or add a term (supervised, a reward, preference).",
        )


def policy_gradient(stage: Distill, spec: PolicyGradientSpec, beside: Beside) -> ByOrigin:
    """The policy gradient of a stage, on the student's tokens."""
    term = PolicyGradient(
        discount=spec.discount,
        following=stage.counts_from == "next",
        length_normalized=spec.length_normalized,
        whiten=spec.whiten,
        clip=spec.clip,
        reward_scale=spec.reward_scale,
        reward_clip=spec.reward_clip,
        baseline=spec.baseline,
        importance=spec.importance,
        teacher_share=stage.strategy.teacher_share,
        reward=None if spec.reward is None else _reward(spec.reward, beside),
    )
    return ByOrigin(term, of_student=True, own_mean=stage.own_means)


def _reward(name: str, beside: Beside) -> Reward:
    return partial(_of_texts, plugins.load("rewards", name).reward, beside.decode)


def _of_texts(
    reward: Callable[[str, str], float],
    decode: Callable[[Sequence[int]], str] | None,
    row_id: str,
    prompt: tuple[int, ...],
    answer: tuple[int, ...],
) -> float:
    """The reward of an answer whose ids become text first."""
    assert decode is not None
    return float(reward(decode(prompt), decode(answer)))


def identity_of_terms(spec: Distill) -> dict[str, Any]:
    """What a stage's terms add to its artifact's key: their options, and the sources of code from outside."""
    names = {"divergence_weight", "support", "own_means", *spec.terms}
    result = spec.model_dump(mode="json", include=names)
    for name in spec.terms:
        term = getattr(spec, name)
        for key in type(term).model_fields:
            if isinstance(choice := getattr(term, key), Choice):
                result[name][key] = plugins.identity(choice.family, choice.name, choice.options)
            elif key == "reward" and choice is not None:
                result[name][key] = plugins.identity("rewards", choice, {})
    return result
