"""Refuse text engines, and options of a generate stage, that the recipe's teacher cannot serve, before anything is asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from potstill.data.dataset import Dataset
from potstill.data.reader import Reader
from potstill.errors import DataError, RecipeError
from potstill.models import vocabulary
from potstill.recipe import plugins
from potstill.recipe.recipe import Recipe
from potstill.recipe.specs import Choice
from potstill.recipe.stages import StageSpec
from potstill.signals.teacher import Teacher
from potstill.stages._later import problem_of
from potstill.stages._states import require_shown
from potstill.stages.distill import Distill
from potstill.stages.generate import Generate

# Fields of a request that change what a token's log-probability is, or may.
_SHAPING = (
    "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "min_p", "top_k", "top_a",
    "typical_p", "allowed_token_ids", "bad_words", "min_tokens", "response_format", "structured_outputs", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "json_schema", "grammar", "regex", "ebnf",
)  # fmt: skip
_NO_FIELD = "Leave it out; a server that knows the field takes it in teacher.extra_body: {top_k: 20}."


def require(recipe: Recipe, teacher: Teacher) -> None:
    """Refuse an engine that takes something else than the teacher reads (ids, or messages), or that lacks what it
    needs here, and options that a served teacher has no field for.

    Raises:
        RecipeError, MachineError: naming the stage's option and the way out.
    """
    served = teacher.reads is None
    for stage in recipe.stages:
        if "text" not in stage.needs:
            continue
        engine = getattr(stage, "engine", "auto")
        if isinstance(engine, Choice):
            _require_engine(stage, engine, teacher, served)
        elif served and (brought := getattr(teacher, "engine", None)):
            _require_installed(plugins.load("generate", brought), teacher)
        if isinstance(stage, Generate):
            if served:
                _require_fields(stage, teacher)
            _require_keep(stage, teacher, served, constrained=_constrained(recipe))
            if stage.keep == "topk" and not served:
                name = getattr(teacher, "engine", "local") if stage.engine == "auto" else stage.engine.name
                if name != "cached":
                    require_shown(recipe.stages, stage.name, name)
    for stage in recipe.stages:
        if served and isinstance(stage, Distill) and keeps_alternatives(recipe, stage):
            _require_read(stage)


def _require_engine(stage: StageSpec, engine: Choice, teacher: Teacher, served: bool) -> None:
    plugin = plugins.load(engine.family, engine.name, engine.options)
    takes = getattr(plugin, "TAKES", "ids")
    if (takes == "messages") != served:
        needs = "is asked over the network" if served else "has its weights here"
        raise RecipeError(
            f"{engine.name} takes {takes}, and this teacher {needs}.",
            path=f"stages.{stage.name}.engine",
            fix="Leave engine out: each teacher brings its own.",
        )
    _require_installed(plugin, teacher)
    if hasattr(plugin, "require_options"):
        plugin.require_options(teacher, getattr(stage, "max_new_tokens", 0), **engine.options)


def _require_installed(plugin: Any, teacher: Teacher) -> None:
    if hasattr(plugin, "require"):
        plugin.require(teacher)


def _require_fields(stage: Generate, teacher: Any) -> None:
    """Refuse options that no request to this teacher carries."""
    if stage.top_k and "top_k" not in teacher.extra_body:
        raise RecipeError(
            "is no field of the OpenAI protocol.", path=f"stages.{stage.name}.top_k", fix=_NO_FIELD
        )
    if stage.top_k and stage.top_k != teacher.extra_body["top_k"]:
        raise RecipeError(
            f"is {stage.top_k}, and what is sent is teacher.extra_body.top_k: {teacher.extra_body['top_k']}.",
            path=f"stages.{stage.name}.top_k",
            fix="Leave it out here.",
        )
    for option, field in (("sampling_temperature", "temperature"), ("top_p", "top_p")):
        if field in teacher.omit and stage.changed(option):
            raise RecipeError(
                f"is never sent: teacher.omit names {field}.",
                path=f"stages.{stage.name}.{option}",
                fix="Leave one of the two out.",
            )


def _constrained(recipe: Recipe) -> bool:
    """Whether requests carry a schema, by which a server masks tokens."""
    return recipe.task is not None and recipe.task.type == "json" and recipe.task.response_format


def _require_keep(stage: Generate, teacher: Any, served: bool, *, constrained: bool) -> None:
    """Refuse to keep what the teacher does not state, or what nobody could be sure of."""
    path = f"stages.{stage.name}.keep"
    whole = hasattr(teacher, "loaded") and not getattr(teacher, "sharded", False)
    if stage.keep and not (served or whole or getattr(teacher, "engine", "local") == "cached"):
        raise RecipeError(
            f"needs one teacher whose weights are whole in this process, and {teacher.name} is none.",
            path=path,
            fix="Leave it out: a capture asks the teacher.",
        )
    if stage.keep == "hidden" and served:
        raise RecipeError(
            "needs a teacher whose weights are whole in this process.",
            path=path,
            fix="keep: topk keeps the likeliest tokens that an endpoint states.",
        )
    if stage.keep != "topk" or not served:
        return
    if teacher.words is None:
        raise RecipeError(
            "needs the tokenizer of the served model: an endpoint names tokens by strings, and students learn ids.",
            path=path,
            fix="Name it: teacher.tokenizer: ORG/MODEL. Or leave keep out, and train on the text: finetune.",
        )
    if constrained:
        raise RecipeError(
            "cannot tell what a log-probability is of: the task's schema is sent, by which a server masks tokens.",
            path=path,
            fix="Set task.response_format: false (answers are checked all the same), or leave keep out.",
        )
    for what in _shaped(stage, teacher):
        raise RecipeError(
            f"cannot tell what a log-probability is of: {what}, and servers state them before it or behind it.",
            path=path,
            fix="Set sampling_temperature: 1 and leave out top_p, top_k, teacher.omit, penalties and constraints.",
        )


def _shaped(stage: Generate, teacher: Any) -> Iterator[str]:
    """What of a request changes the distribution that answers are drawn from."""
    if stage.sampling_temperature != 1.0:
        yield f"sampling_temperature is {stage.sampling_temperature:g}"
    if stage.top_p != 1.0:
        yield f"top_p is {stage.top_p:g}"
    if teacher.omit:
        yield f"teacher.omit leaves {teacher.omit[0]} to the server"
    yield from (f"teacher.extra_body has {name}" for name in _SHAPING if name in teacher.extra_body)


def keeps_alternatives(recipe: Recipe, stage: StageSpec) -> bool:
    """Whether a stage reads the teacher's distribution from what the generate stage before it kept."""
    before = [one for one in recipe.stages[: recipe.stages.index(stage)] if "text" in one.needs]
    return bool(before) and getattr(before[-1], "keep", None) == "topk" and "live" not in stage.asks


def _require_read(stage: Distill) -> None:
    """Refuse a stage that cannot learn from the likeliest tokens at temperature 1."""
    problem = problem_of(stage, "topk", "topk")
    if not problem and stage.temperature != 1.0:
        problem = f"its temperature is {stage.temperature}, and what is kept is of temperature 1"
    if problem:
        raise RecipeError(
            f"reads what the served teacher stated beside its tokens, and {problem}.",
            path=f"stages.{stage.name}",
            fix="Use forward_kl at temperature 1, or train on the text: finetune.",
        )


def require_same_ids(recipe: Recipe, teacher: Any, student: Reader) -> None:
    """Refuse to keep alternatives that are ids of another vocabulary than the student's.

    Raises:
        VocabularyError, RecipeError: an id means something else to the student, or nothing.
    """
    served = teacher.reads is None
    if not (served and any(getattr(stage, "keep", None) == "topk" for stage in recipe.stages)):
        return
    shared = vocabulary.require_shared(teacher.words.vocabulary, student.vocabulary)
    if shared.teacher_only:
        raise RecipeError(
            f"has {shared.teacher_only} ids that the student's vocabulary lacks.",
            path="teacher.tokenizer",
            fix="Take a student that has them, or train on the text: leave keep out, and finetune.",
        )


def require_single_turns(recipe: Recipe, teacher: Any, student: Reader, data: Dataset) -> None:
    """Refuse conversations for an endpoint that completes one text.

    Raises:
        DataError: names the first row.
    """
    asked = any("text" in stage.needs for stage in recipe.stages)
    if not asked or getattr(teacher, "api", "chat") != "completions":
        return
    for row in data.everything:
        turns = student.templater.conversation(row.for_teacher.prompt)
        if len(turns) != 1 or row.tools:
            raise DataError(
                f"{row.where}: a prompt has {len(turns)} turns{' and tools' if row.tools else ''}, and api: completions "
                "takes one text.",
                path="teacher.api",
                fix="Use api: chat, or rows of one user turn (data.system: merge puts a system prompt into it).",
            )
