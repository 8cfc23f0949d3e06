"""What the stages behind a capture read of it: kinds of signal, temperatures, held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import RecipeError
from potstill.objectives.token import Divergence
from potstill.recipe.specs import Schedule, ends
from potstill.recipe.stages import StageSpec
from potstill.stages import _evaluation
from potstill.stages._context import Context, State
from potstill.stages._metrics import metrics_of
from potstill.stages._objective import objective_of
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill
from potstill.stages.evaluate import Evaluate

# A kind of cache, and the word by which divergences and terms know what it gives.
GIVES: Mapping[str, str] = {
    "hidden": "dense", "topk": "topk", "topk_sampled": "sampled", "sampled": "sampled", "token": "token",
}  # fmt: skip
AT_ONE = frozenset({"sampled", "topk_sampled"})  # kinds that serve the temperature 1 alone


@dataclass(frozen=True)
class Needs:
    """The kinds of cache that every later stage can read, and the temperatures of its divergences."""

    kinds: tuple[str, ...]
    temperatures: tuple[float, ...]


def needs_of(stages: Sequence[StageSpec], name: str, *, partial: bool = False) -> Needs:
    """What the stages behind the capture `name` read; `partial` says that one model has ids that the other lacks.

    Raises:
        RecipeError: its signal is one that a later stage cannot read.
    """
    (at,) = (index for index, stage in enumerate(stages) if stage.name == name)
    spec, readers = stages[at], [*_readers(stages[at + 1 :])]
    assert isinstance(spec, Capture)
    temperatures = {1.0}
    foreign = "one model has ids that the other lacks, and what is kept is cut to shared ones as it is read"
    why = {kind: foreign for kind in GIVES if partial and kind != "hidden"}
    for stage in readers:
        temperatures |= set(ends(stage.temperature))
        for kind, word in GIVES.items():
            if problem := _problem(stage, kind, word):
                why.setdefault(kind, problem)
    if spec.signal in why:
        usable = ", ".join(kind for kind in GIVES if kind not in why and kind != "token")
        raise RecipeError(
            f"{spec.signal} cannot be read later: {why[spec.signal]}.",
            path=f"stages.{name}.signal",
            fix=f"Use {usable}, or auto.",
        )
    return Needs(tuple(kind for kind in GIVES if kind not in why), tuple(sorted(temperatures)))


def divergences_of(stages: Sequence[StageSpec], name: str) -> list[Divergence]:
    """What the stages that read the capture `name` compare."""
    names = [stage.name for stage in stages]
    after = stages[names.index(name) + 1 :] if name in names else ()
    return [one for stage in _readers(after) for one in objective_of(stage).compared.values()]


def asked_later(context: Context, name: str, state: State) -> tuple[Sequence[Any], int] | None:
    """The held-out prompts that models will answer in text, and the most tokens of an answer; None for none.

    Without a stage that measures, those of one with its defaults: a cache is measured with elsewhere.
    """
    names = [stage.name for stage in context.stages]
    after = context.stages[names.index(name) + 1 :] if name in names else ()
    measuring = [stage for stage in after if isinstance(stage, Evaluate)] or [Evaluate()]
    for written in measuring:
        if any("answers" in metric.needs for metric in metrics_of(written.metrics)):
            settled, _ = context.settle(written, state)
            return _evaluation.asked(written, settled, state, context)
    return None


def _readers(stages: Sequence[StageSpec]) -> Iterator[Distill]:
    """The stages that read what was captured: until the teacher writes other text, where no student writes."""
    for stage in stages:
        if "text" in stage.needs or isinstance(stage, Capture):
            return
        if isinstance(stage, Distill) and "live" not in stage.asks:
            yield stage


def _problem(stage: Distill, kind: str, gives: str) -> str:
    """Why a stage cannot read a kind of cache; "" where it can."""
    if gives == "dense":
        return ""
    for divergence in objective_of(stage).compared.values():
        if gives not in divergence.supports:
            return f"{divergence.name} of {stage.name} does not support {gives} signals"
    whole = [
        name for name in ("support", "policy_gradient", "preference") if getattr(stage, name) is not None
    ]
    if whole:
        return f"{whole[0]} of {stage.name} reads the whole distribution"
    if isinstance(stage.temperature, Schedule):
        return f"the temperature of {stage.name} moves"
    if kind in AT_ONE and stage.temperature != 1.0:
        return f"{stage.name} reads it at temperature {stage.temperature:g}, and it is drawn at 1"
    if stage.token_weights is not None:
        return f"token_weights of {stage.name} read the whole distribution"
    return ""
