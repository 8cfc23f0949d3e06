"""From what pydantic found to sentences: the path as the reader wrote it, the value, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from potstill.errors import RecipeError
from potstill.recipe import plugins
from potstill.recipe.specs import Plugin, read_plugin
from potstill.recipe.stages import STAGES

# Other tools' names for what we call differently; `-` and capitals do not matter.
_SYNONYMS = {
    "alpha": "ce_weight",
    "ce_alpha": "ce_weight",
    "hard_weight": "ce_weight",
    "kd_alpha": "ce_weight",
    "kd_ratio": "ce_weight",
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "batch_size": "tokens_per_step",
    "max_tokens": "max_new_tokens",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "warmup_ratio": "warmup",
    "lr_scheduler_type": "schedule",
    "grad_clip": "max_grad_norm",
    "gradient_checkpointing": "activation_checkpointing",
    "kd_temperature": "temperature",
    "loss": "divergence",
    "base_model": "model",
    "name_or_path": "model",
    "dataset": "train",
    "eval": "heldout",
    "test": "heldout",
    "validation": "heldout",
    "max_seq_length": "max_length",
    "output_dir": "runs",
}
_MEANING = {
    "ce_weight": "ce_weight is the share of the hard-label term; the divergence has the rest.",
    "tokens_per_step": "A step is counted in scored tokens, not in rows.",
}
_EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "finite_number": "a finite number",
}
# A value of the right kind that is out of range says more than the alternatives it also is not.
_RANGES = {
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be a finite number",
}
_WRAPPED = {"teacher": "model", "student": "model", "data": "train"}

Loc = tuple[str | int, ...]


def describe(error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel]) -> list[RecipeError]:
    """One error for each thing that is wrong in `raw`, a recipe as it was read."""
    groups: dict[Loc, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_written(detail, raw), []).append(detail)
    sections = sections_of(root)
    return [
        problem
        for loc, details in groups.items()
        if not _explained_deeper(loc, details, groups)
        for problem in _problems(loc, details, raw, sections)
    ]


def plugin_problems(raw: Mapping[str, Any]) -> list[RecipeError]:
    """Divergences and strategies that do not exist, and options they do not take."""
    problems: list[RecipeError] = []
    stages = raw.get("stages")
    for index, stage in enumerate(stages if isinstance(stages, list) else []):
        written = stage.get("distill") if isinstance(stage, dict) else None
        for key, family in (
            ("divergence", "divergences"),
            ("strategy", "strategies"),
            ("token_weights", "token_weights"),
        ):
            if not isinstance(written, dict) or key not in written:
                continue
            try:
                choice = read_plugin(written[key])
            except PydanticCustomError:
                continue  # pydantic tells this one
            if isinstance(choice["name"], str) and isinstance(choice["options"], dict):
                path = place(("stages", index, "distill", key), raw)
                problems += plugins.check_options(family, choice["name"], choice["options"], path)
    return problems


def sections_of(root: type[BaseModel], prefix: Loc = ()) -> dict[Loc, tuple[str, ...]]:
    """The keys that each section of a recipe knows, by the section's path."""
    found: dict[Loc, tuple[str, ...]] = {}
    keys = {field.alias or name: field.annotation for name, field in root.model_fields.items()}
    found[prefix] = tuple(key for key in keys if key != "verb")
    for key, annotation in keys.items():
        if prefix == () and key == "stages":
            for verb, stage in STAGES.items():
                found |= sections_of(stage, ("stages", verb))
            continue
        for model in _models(annotation):
            found |= sections_of(model, (*prefix, key))
    return found


def place(loc: Loc, raw: Mapping[str, Any]) -> str:
    """A path for the reader: dotted, a stage by its name where the name says which one."""
    if loc[:1] != ("stages",) or len(loc) < 2:
        return ".".join(map(str, loc))
    names = stage_names(raw.get("stages"))
    index = loc[1]
    name = names[index] if isinstance(index, int) and index < len(names) else None
    called = str(index) if name is None or "." in name or names.count(name) > 1 else name
    return ".".join(["stages", called, *map(str, loc[3:])])


def stage_names(stages: object) -> list[str | None]:
    """What each written stage is called; None where it cannot be told."""
    names: list[str | None] = []
    for stage in stages if isinstance(stages, list) else []:
        name: object = stage if isinstance(stage, str) else None
        if isinstance(stage, dict) and len(stage) == 1:
            verb, options = next(iter(stage.items()))
            name = options.get("name", verb) if isinstance(options, dict) else verb
        names.append(name if isinstance(name, str) else None)
    return names


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if issubclass(annotation, Plugin) else [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _written(detail: ErrorDetails, raw: Any) -> Loc:
    """The part of pydantic's location that stands in the recipe; the rest names union branches."""
    loc, node = [], raw
    for key in detail["loc"]:
        if key in _keys(node):
            node = node[key]
        elif not (detail["type"] == "missing" and key == detail["loc"][-1]):
            continue
        loc.append(key)
    return tuple(loc)


def _keys(node: Any) -> Iterable[Any]:
    if isinstance(node, list):
        return range(len(node))
    return node if isinstance(node, Mapping) else ()


def _explained_deeper(loc: Loc, details: Sequence[ErrorDetails], groups: Mapping[Loc, Any]) -> bool:
    plain = all(detail["type"] in (*_EXPECTED, "literal_error", "too_short") for detail in details)
    return plain and any(other[: len(loc)] == loc and len(other) > len(loc) for other in groups)


def _problems(
    loc: Loc, details: Sequence[ErrorDetails], raw: Mapping[str, Any], sections: Mapping[Loc, tuple[str, ...]]
) -> list[RecipeError]:
    first = details[0]
    value = first["input"]
    if first["type"] == "conflicts":
        return [
            RecipeError(one.message, fix=one.fix, path=place((*loc, one.key) if one.key else loc, raw))
            for one in first["ctx"]["found"]
        ]
    path = place(loc, raw)
    if first["type"] == "missing":
        return [RecipeError("is missing.", fix=f"Add the key {loc[-1]}.", path=path)]
    if first["type"] == "extra_forbidden":
        section = ("stages", loc[2], *loc[3:-1]) if loc[:1] == ("stages",) else loc[:-1]
        message, fix = _unknown_key(str(loc[-1]), section, sections)
        return [RecipeError(message, fix=fix, path=path, value=value)]
    if first["type"] == "union_tag_invalid":
        tag = first["ctx"]["tag"]
        message = f"no stage is called {tag!r}{plugins.did_you_mean(tag, STAGES)}"
        return [RecipeError(message, fix=f"Stages: {', '.join(STAGES)}.", path=path, value=tag)]
    message, fix = _bad_value(str(loc[-1]), details, value)
    return [RecipeError(message, fix=fix, path=path, value=value)]


def _unknown_key(key: str, section: Loc, sections: Mapping[Loc, tuple[str, ...]]) -> tuple[str, str]:
    known = sections.get(section, ())
    if not known:
        return "unknown key.", f"Options stand below the plug-in's name, as in {{NAME: {{{key}: VALUE}}}}."
    plain = key.lower().replace("-", "_")
    wanted = _SYNONYMS.get(plain, plain)
    if wanted in known:
        return f"unknown key; did you mean {wanted}?", _MEANING.get(wanted, "")
    everywhere = [word for words in sections.values() for word in words]
    for word in difflib.get_close_matches(wanted, everywhere, n=1, cutoff=0.8):
        wanted = word if word not in known else wanted
    homes = [_home(loc) for loc, keys in sections.items() if wanted in keys]
    near = plugins.did_you_mean(plain, known, cutoff=0.7 if homes else 0.6)
    if homes:
        return f"unknown key{near}", f"{wanted} belongs {_or(homes)}."
    return f"unknown key{near}", "" if near != "." else f"Known here: {', '.join(known)}."


def _home(section: Loc) -> str:
    if section[:1] == ("stages",):
        return ".".join([f"in a {section[1]} stage", *map(str, section[2:])])
    return f"under {'.'.join(map(str, section))}" if section else "at the top level"


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bad_value(key: str, details: Sequence[ErrorDetails], value: object) -> tuple[str, str]:
    for detail in details:
        if detail["type"] in _RANGES:
            bound = _RANGES[detail["type"]].format(**detail.get("ctx", {}))
            return f"{bound}, not {_show(value)}.", ""
    if details[0]["type"] == "string_pattern_mismatch":
        return (
            f"{value!r} cannot name a folder.",
            "Use letters, digits, - and _, starting with a letter or digit.",
        )
    expected = list(dict.fromkeys(word for detail in details for word in _expected(detail)))
    if not expected:
        return details[0]["msg"], ""
    return f"must be {_or(expected)}, not {_show(value)}.", _way_out(key, expected, value)


def _expected(detail: ErrorDetails) -> list[str]:
    if detail["type"] == "literal_error":
        words = detail["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return [word.strip("'") for word in words]
    if detail["type"] in ("string_too_short", "too_short"):
        return ["text" if detail["type"] == "string_too_short" else "a list with something in it"]
    return [_EXPECTED[detail["type"]]] if detail["type"] in _EXPECTED else []


def _way_out(key: str, expected: Sequence[str], value: object) -> str:
    if isinstance(value, str) and "a mapping" in expected and key in _WRAPPED:
        return f"Write {key}: {{{_WRAPPED[key]}: {value}}}."
    if isinstance(value, str) and "true or false" in expected:
        meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower())
        return f"Write {meant}." if meant else ""
    if isinstance(value, str) and {"a number", "a whole number"} & set(expected) and _is_number(value):
        return "Remove the leading zeros." if value.lstrip("+-")[0] == "0" else "Remove the quotes."
    if isinstance(value, int | float) and "text" in expected:
        return "Put it in quotes."
    if isinstance(value, str):
        near = plugins.did_you_mean(value, [word for word in expected if " " not in word])
        return "" if near == "." else near.removeprefix("; ").capitalize()
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if isinstance(value, str):
        return f"the text {value[:60]!r}" if value else "empty"
    return repr(value)
