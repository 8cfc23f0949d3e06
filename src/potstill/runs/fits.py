"""Whether stages can compare, and a capture can keep, what a teacher says: kinds of signal, temperatures, heads.

A run would find out in a stage's first step, behind hours of writing or of a capture that was paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.cache import fidelity
from potstill.errors import RecipeError, SignalError
from potstill.models import anatomy, loading
from potstill.recipe.recipe import Recipe
from potstill.recipe.specs import ends
from potstill.recipe.stages import StageSpec
from potstill.signals.vector import KlVector
from potstill.stages._context import StudentRef
from potstill.stages._later import compared_of, needs_of, problem_of, readers_of
from potstill.stages._objective import objective_of, require_signal
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill

CHOSEN = "auto", "smallest"  # signals that a capture chooses itself


def require_comparable(stage: Distill, teacher: Any) -> None:
    """Refuse a stage whose divergence, token weights or temperature the signals of its teacher cannot serve.

    Raises:
        SignalError: names the option.
    """
    objective, kinds = objective_of(stage), sorted(teacher.provides - {"text"})
    require_signal(objective, stage.name, teacher.provides)
    weigh = objective.tokens.weigh
    if weigh is not None and not any(weigh.reads(kind) for kind in kinds):
        raise SignalError(
            f"the token weight {weigh.name} cannot be read from {', '.join(kinds)} signals.",
            path=f"stages.{stage.name}.token_weights",
            fix="Choose another token weight, or a signal with the teacher's own probabilities.",
        )
    if min(ends(stage.ce_weight)) < 1.0:
        _require_served(stage, teacher)


def _require_served(stage: Distill, teacher: Any) -> None:
    """Refuse temperatures at which the teacher said nothing."""
    first, last = ends(stage.temperature)
    if first != last and _limited(teacher):
        raise SignalError(
            f"moves, and {teacher.name} gives stored ids, which serve single temperatures.",
            path=f"stages.{stage.name}.temperature",
            fix="Leave it at 1, or capture with signal: hidden, which serves all.",
        )
    if not _serves(teacher, last):
        raise SignalError(
            f"is {last:g}, and what {teacher.name} says is of another one.",
            path=f"stages.{stage.name}.temperature",
            fix="Leave it at 1, or capture with this temperature or with signal: hidden.",
        )


def _limited(teacher: Any) -> bool:
    members = [member.teacher for member in getattr(teacher, "members", ())]
    return getattr(teacher, "temperatures", None) is not None or any(map(_limited, members))


def _serves(teacher: Any, temperature: float) -> bool:
    """Whether a teacher can be asked at a temperature; of several each is tempered by its own one as well."""
    members = getattr(teacher, "members", ())
    served = getattr(teacher, "temperatures", None)
    of_members = (_serves(member.teacher, temperature * member.temperature) for member in members)
    return (served is None or temperature in served) and all(of_members)


def require_keepable(stages: Sequence[StageSpec], spec: Capture, teacher: Any, *, partial: bool) -> None:
    """Refuse a capture of something that the teacher does not say, or that later stages cannot read.

    Args:
        partial: one model has ids that the other lacks.

    Raises:
        RecipeError: says what stands in the way.
    """
    needs = needs_of(stages, spec.name, partial=partial and "dense" in teacher.provides)
    if "dense" not in teacher.provides:
        _require_of_likeliest(stages, spec, teacher)
    elif hasattr(teacher, "members"):
        path = f"stages.{spec.name}.signal"
        if spec.signal == "hidden":
            raise RecipeError(
                "cannot be hidden: several teachers have no hidden state in common.",
                path=path,
                fix="Leave it out, or capture each teacher in a recipe of its own.",
            )
        if spec.signal in CHOSEN:
            compared, budget = compared_of(stages, spec.name, needs), spec.bytes_per_token
            try:
                fidelity.kinds_for(compared, needs.temperatures, budget, whole=False, vectors=False)
            except SignalError as error:
                raise RecipeError(error.message, path=path, fix=error.fix) from error


def _require_of_likeliest(stages: Sequence[StageSpec], spec: Capture, teacher: Any) -> None:
    """Refuse what cannot be made of the likeliest ids, which are all that the teacher gives."""
    if "topk" not in teacher.provides:
        return
    if spec.signal not in (*CHOSEN, "topk"):
        raise RecipeError(
            f"cannot be {spec.signal}: {teacher.name} gives its likeliest ids and nothing more.",
            path=f"stages.{spec.name}.signal",
            fix="Leave it out, or write topk.",
        )
    for reader in readers_of(stages, spec.name):
        if problem := problem_of(reader, "topk", "topk"):
            raise RecipeError(
                f"can keep nothing but the likeliest ids that {teacher.name} gives, and {problem}.",
                path=f"stages.{spec.name}",
                fix="Use a divergence that reads stored ids (forward_kl), or a teacher whose weights are here.",
            )
        _require_served(reader, teacher)


def require_plain_head(recipe: Recipe, teacher: Any, student: StudentRef) -> None:
    """Refuse vectors of a student's head whose logits are no linear map, as far as the config says so.

    Raises:
        RecipeError: names the setting of the config.
    """
    captures = [f"stages.{stage.name}.signal" for stage in recipe.stages if _keeps_vectors(stage)]
    reads = KlVector.kind in teacher.provides and any("distribution" in stage.asks for stage in recipe.stages)
    paths = [*captures, *(["teacher"] if reads else [])]
    if not paths or (config := _config_of(student, teacher)) is None:
        return
    if cap := anatomy.softcap_of(config):
        raise RecipeError(
            f"kl_vector needs a plain linear student head, and this one has a softcap ({anatomy.SOFTCAP}: {cap:g}).",
            path=paths[0],
            fix="Use signal: hidden, or leave it out.",
        )


def _keeps_vectors(stage: StageSpec) -> bool:
    return isinstance(stage, Capture) and stage.signal == "kl_vector"


def _config_of(student: StudentRef, teacher: Any) -> Any:
    """The student's config, that of its teacher where it is cut; None where nobody can say before it is made."""
    if hasattr(student.plugin, "config"):
        return student.plugin.config(student.context, **student.options)
    source = getattr(teacher, "source", None)
    return loading.load_config(source) if student.name == "depth" and source is not None else None
