"""What the stages behind a capture read of it: kinds of signal, temperatures, held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from potstill.errors import RecipeError
from potstill.objectives.token import Divergence
from potstill.recipe.specs import Schedule, ends
from potstill.recipe.stages import StageSpec
from potstill.recipe.training import Training
from potstill.stages import _evaluation
from potstill.stages._context import Context, Setup, State
from potstill.stages._metrics import metrics_of
from potstill.stages._objective import objective_of
from potstill.stages.capture import Capture
from potstill.stages.distill import Distill
from potstill.stages.evaluate import Evaluate
from potstill.stages.generate import Generate

# A kind of cache, and the word by which divergences and terms know what it gives.
GIVES: Mapping[str, str] = {
    "hidden": "dense", "topk": "topk", "topk_sampled": "sampled", "sampled": "sampled", "kl_vector": "vector",
    "token": "token",
}  # fmt: skip
STORED = frozenset({"topk", "sampled", "topk_sampled", "kl_vector"})  # kinds that are no whole distribution
AT_ONE = frozenset({"sampled", "topk_sampled", "kl_vector"})  # kinds that serve the temperature 1 alone


@dataclass(frozen=True)
class Needs:
    """The kinds of cache that every later stage can read, and the temperatures of its divergences."""

    kinds: tuple[str, ...]
    temperatures: tuple[float, ...]


def needs_of(stages: Sequence[StageSpec], name: str, *, partial: bool = False) -> Needs:
    """What the stages behind the capture `name` read; `partial` as `cuts` says it.

    Raises:
        RecipeError: its signal is one that a later stage cannot read.
    """
    (at,) = (index for index, stage in enumerate(stages) if stage.name == name)
    spec, readers = stages[at], [*_readers(stages[at + 1 :])]
    assert isinstance(spec, Capture)
    temperatures = {1.0}
    foreign = "one model has ids that the other lacks, and what is kept is cut to shared ones as it is read"
    why = {kind: foreign for kind in GIVES if partial and kind != "hidden"}
    if trainer := _trainer_of_the_head(stages[at + 1 :]):
        why.setdefault(
            "kl_vector", f"{trainer} trains the student's output layer (freeze_head: true keeps it)"
        )
    for stage in readers:
        temperatures |= set(ends(stage.temperature))
        for kind, word in GIVES.items():
            if problem := problem_of(stage, kind, word):
                why.setdefault(kind, problem)
    if spec.signal in why:
        usable = ", ".join(kind for kind in GIVES if kind not in why and kind != "token")
        raise RecipeError(
            f"{spec.signal} cannot be read later: {why[spec.signal]}.",
            path=f"stages.{name}.signal",
            fix=f"Use {usable}, or auto.",
        )
    if keeper := keeper_of_ids(stages[:at]):
        _require_ids_serve(keeper, spec, why.get("topk"))
    return Needs(tuple(kind for kind in GIVES if kind not in why), tuple(sorted(temperatures)))


def cuts(setup: Setup) -> bool:
    """Whether what is kept of whole distributions would have to be cut to shared ids as it is read: of a teacher that
    states its likeliest ids alone those are kept as they come, and each knows how many ids there are."""
    return setup.readers.partial and "dense" in setup.teacher.provides


def keeper_of_ids(before: Sequence[StageSpec]) -> Generate | None:
    """The stage whose answers' likeliest ids were kept; None where states were, or nothing."""
    written = next((stage for stage in reversed(before) if "text" in stage.needs), None)
    return written if isinstance(written, Generate) and written.keep == "topk" else None


def _require_ids_serve(keeper: Generate, spec: Capture, problem: str | None) -> None:
    """Refuse likeliest ids that the stages behind a capture cannot read, and a capture that wants something else.

    Raises:
        RecipeError: says what stands in the way.
    """
    if problem is None and spec.signal not in ("auto", "smallest", "topk"):
        problem = f"{spec.name} is to keep {spec.signal}"
    if problem is None and (spec.changed("max_kl_nats") or spec.changed("bytes_per_token")):
        problem = f"{spec.name} has a limit, and likeliest ids are kept before anything is measured"
    if problem is not None:
        raise RecipeError(
            f"topk cannot serve: {problem}.", path=f"stages.{keeper.name}.keep", fix="Write keep: hidden."
        )


def temperatures_behind(stages: Sequence[StageSpec], name: str) -> list[float]:
    """The temperatures at which what the teacher's answers of the stage `name` were drawn from is compared."""
    names = [stage.name for stage in stages]
    for stage in stages[names.index(name) + 1 :] if name in names else ():
        if "text" in stage.needs:
            break
        if isinstance(stage, Capture):
            return [*needs_of(stages, stage.name).temperatures]
    return [1.0]


def readers_of(stages: Sequence[StageSpec], name: str) -> list[Distill]:
    """The stages that read the capture `name`."""
    return [*_readers(_behind(stages, name))]


def divergences_of(stages: Sequence[StageSpec], name: str) -> list[Divergence]:
    """What the stages that read the capture `name` compare."""
    return [one for stage in readers_of(stages, name) for one in objective_of(stage).compared.values()]


def compared_of(stages: Sequence[StageSpec], name: str, needs: Needs) -> list[Divergence]:
    """The same, where they can read anything but whole distributions."""
    return divergences_of(stages, name) if STORED & {*needs.kinds} else []


def asked_later(context: Context, name: str, state: State) -> tuple[Sequence[Any], int] | None:
    """The held-out prompts that models will answer in text, and the most tokens of an answer; None for none.

    Without a stage that measures, those of one with its defaults: a cache is measured with elsewhere.
    """
    after, task = _behind(context.stages, name), getattr(context.setup.task, "type", None)
    measuring = [stage for stage in after if isinstance(stage, Evaluate)] or [Evaluate()]
    for written in measuring:
        if any("answers" in metric.needs for metric in metrics_of(written.metrics, task)):
            settled, _ = context.settle(written, state)
            return _evaluation.asked(written, settled, state, context)
    return None


def require_answers(context: Context, name: str, state: State) -> None:
    """Refuse an evaluation behind the stage `name` of answers that the teacher did not write before it left.

    Raises:
        CacheMiss: names what was answered.
    """
    teacher: Any = context.setup.teacher
    after = _behind(context.stages, name)
    measured = any(isinstance(stage, Evaluate) for stage in after)
    if not hasattr(teacher, "greedy") or not teacher.facts["answered"] or not measured:
        return
    if not any("text" in stage.needs for stage in after) and (asked := asked_later(context, name, state)):
        questions, most = asked
        teacher.greedy([question.teacher_prompt_ids for question in questions], most)


def _behind(stages: Sequence[StageSpec], name: str) -> Sequence[StageSpec]:
    names = [stage.name for stage in stages]
    return stages[names.index(name) + 1 :] if name in names else ()


def _readers(stages: Sequence[StageSpec]) -> Iterator[Distill]:
    """The stages that read what was captured: until the teacher writes other text, where no student writes."""
    for stage in stages:
        if "text" in stage.needs or isinstance(stage, Capture):
            return
        if isinstance(stage, Distill) and "live" not in stage.asks:
            yield stage


def _trainer_of_the_head(stages: Sequence[StageSpec]) -> str:
    """The stage that changes the student's head before the last reader has read a capture; "" where none does."""
    readers = [*_readers(stages)]
    until = max((stages.index(reader) for reader in readers), default=-1)
    trained = (
        stage for stage in stages[: until + 1] if isinstance(stage, Training) and not stage.freeze_head
    )
    return next((stage.name for stage in trained if not stage.from_untrained), "")


def problem_of(stage: Distill, kind: str, gives: str) -> str:
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
        return f"{stage.name} reads it at temperature {stage.temperature:g}, and it is made at 1"
    if stage.token_weights is not None:
        return f"token_weights of {stage.name} read the whole distribution"
    return ""
