"""Turn pydantic's errors into sentences: the path as the reader wrote it, the value, the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from potstill.errors import RecipeError
from potstill.recipe import plugins
from potstill.recipe.specs import Choice
from potstill.recipe.stages import stage_types
from potstill.recipe.verbs import verbs
from potstill.recipe.words import one

# Our name, and the names that other tools have for it; `-` and capitals do not matter.
_NAMES = {
    "ce_weight": "alpha ce_alpha hard_weight kd_alpha kd_ratio",
    "learning_rate": "lr max_lr",
    "tokens_per_step": "batch_size",
    "max_new_tokens": "max_tokens",
    "epochs": "num_epochs num_train_epochs",
    "steps": "max_steps",
    "warmup": "warmup_ratio",
    "schedule": "lr_scheduler_type",
    "max_grad_norm": "grad_clip",
    "activation_checkpointing": "gradient_checkpointing",
    "temperature": "kd_temperature",
    "divergence": "loss",
    "model": "base_model name_or_path",
    "train": "dataset",
    "heldout": "eval test validation",
    "max_length": "max_seq_length",
    "runs": "output_dir",
}
_SYNONYMS = {theirs: ours for ours, names in _NAMES.items() for theirs in names.split()}
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
    "string_too_short": "text",
    "too_short": "a list with something in it",
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
Sections = Mapping[Loc, tuple[str, ...]]


def describe(error: ValidationError, raw: Mapping[str, Any], root: type[BaseModel]) -> list[RecipeError]:
    """One error for each thing that is wrong in `raw`, a recipe as YAML gives it."""
    groups: dict[Loc, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_written(detail, raw), []).append(detail)
    sections = _sections(root)
    return [
        problem
        for loc, details in groups.items()
        if not _explained_deeper(loc, details, groups)
        for problem in _problems(loc, details, raw, sections)
    ]


def _sections(root: type[BaseModel], prefix: Loc = ()) -> dict[Loc, tuple[str, ...]]:
    """The keys of each section of a recipe, by the section's path; a stage's is `("stages", VERB)`."""
    keys = {field.alias or name: field.annotation for name, field in root.model_fields.items()}
    sections: dict[Loc, tuple[str, ...]] = {prefix: tuple(key for key in keys if key != "verb")}
    for key, annotation in keys.items():
        if prefix == () and key == "stages":
            for verb, stage in stage_types().items():
                sections |= _sections(stage, ("stages", verb))
            continue
        for model in _models(annotation):
            if not issubclass(model, Choice):
                sections |= _sections(model, (*prefix, key))
    return sections


def stage_names(stages: object) -> list[str | None]:
    """The name of each stage of a raw recipe; None where it has none."""
    return [_stage_name(stage) for stage in stages] if isinstance(stages, list) else []


def _stage_name(stage: object) -> str | None:
    name = stage
    if isinstance(stage, dict) and len(stage) == 1:
        ((name, options),) = stage.items()
        if isinstance(options, dict):
            name = options.get("name", name)
    return name if isinstance(name, str) else None


def _path(loc: Loc, raw: Mapping[str, Any]) -> str:
    """A path for the reader: dotted, a stage by its name where no other stage has it."""
    if loc[:1] != ("stages",) or len(loc) < 2:
        return ".".join(map(str, loc))
    names = stage_names(raw.get("stages"))
    index = loc[1]
    name = names[index] if isinstance(index, int) and index < len(names) else None
    stage = str(index) if name is None or "." in name or names.count(name) > 1 else name
    return ".".join(["stages", stage, *map(str, loc[3:])])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _written(detail: ErrorDetails, raw: Any) -> Loc:
    """The part of pydantic's location that is written in the recipe; the rest names union branches."""
    loc, node = [], raw
    for key in detail["loc"]:
        if key in _keys(node):
            node = node[key]
        elif detail["type"] != "missing" or key != detail["loc"][-1]:
            continue
        loc.append(key)
    return tuple(loc)


def _keys(node: Any) -> Iterable[Any]:
    if isinstance(node, list):
        return range(len(node))
    return node if isinstance(node, Mapping) else ()


def _explained_deeper(loc: Loc, details: Sequence[ErrorDetails], groups: Mapping[Loc, Any]) -> bool:
    plain = all(detail["type"] in (*_EXPECTED, "literal_error") for detail in details)
    return plain and any(other[: len(loc)] == loc and len(other) > len(loc) for other in groups)


def _problems(
    loc: Loc, details: Sequence[ErrorDetails], raw: Mapping[str, Any], sections: Sections
) -> list[RecipeError]:
    # Of the forms that a value may have, the one that it has comes first.
    first = next((detail for detail in details if detail["type"] == "conflicts"), details[0])
    value = first["input"]
    if first["type"] == "conflicts":
        return [
            RecipeError(message, fix=fix, path=_path((*loc, key) if key else loc, raw), value=value)
            for key, message, fix, value in first["ctx"]["conflicts"]
        ]
    if first["type"] == "missing":
        message, fix, value = "is missing.", f"Add the key {loc[-1]}.", None
    elif first["type"] == "extra_forbidden":
        section = ("stages", loc[2], *loc[3:-1]) if loc[:1] == ("stages",) else loc[:-1]
        message, fix = _unknown_key(str(loc[-1]), section, sections)
    elif first["type"] == "union_tag_invalid":
        value = first["ctx"]["tag"]
        message = f"no stage is called {value!r}{plugins.did_you_mean(value, verbs())}"
        fix = f"Stages: {', '.join(verbs())}."
    else:
        message, fix = _bad_value(str(loc[-1]), details, value)
    return [RecipeError(message, fix=fix, path=_path(loc, raw), value=value)]


def _unknown_key(key: str, section: Loc, sections: Sections) -> tuple[str, str]:
    keys = sections.get(section, ())
    if not keys:
        return "unknown key.", f"Options stand below the plug-in's name, as in {{NAME: {{{key}: VALUE}}}}."
    plain = _plain(key)
    wanted = our_name(key)
    if wanted in keys:
        return f"unknown key; did you mean {wanted}?", _MEANING.get(wanted, "")
    everywhere = [word for words in sections.values() for word in words]
    for word in difflib.get_close_matches(wanted, everywhere, n=1, cutoff=0.8):
        wanted = word if word not in keys else wanted
    homes = [_home(loc) for loc, others in sections.items() if wanted in others]
    forms = plugins.requirements("teachers") if section == ("teacher",) else {}
    keys = (*keys, *(form for form in forms if form not in keys))
    near = plugins.did_you_mean(plain, keys, cutoff=0.7 if homes else 0.6)
    if homes:
        return f"unknown key{near}", f"{wanted} belongs {_or(homes)}."
    return f"unknown key{near}", "" if near != "." else f"Known here: {', '.join(keys)}."


def our_name(key: str) -> str:
    """The name that potstill has for a key of another tool; any other key is returned as it is."""
    return _SYNONYMS.get(_plain(key), _plain(key))


def _plain(key: str) -> str:
    return key.lower().replace("-", "_")


def _home(section: Loc) -> str:
    if section[:1] == ("stages",):
        return ".".join([f"in {one(str(section[1]))} stage", *map(str, section[2:])])
    return f"under {'.'.join(map(str, section))}" if section else "at the top level"


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bad_value(key: str, details: Sequence[ErrorDetails], value: object) -> tuple[str, str]:
    for detail in details:
        if detail["type"] in _RANGES:
            bound = _RANGES[detail["type"]].format(**detail.get("ctx", {}))
            return f"{bound}, not {_show(value)}.", ""
    if details[0]["type"] == "string_pattern_mismatch":
        fix = "Use letters, digits, - and _, starting with a letter or digit."
        return f"{value!r} cannot name a folder.", fix
    expected = list(dict.fromkeys(word for detail in details for word in _expected(detail)))
    if not expected:
        return details[0]["msg"], ""
    return f"must be {_or(expected)}, not {_show(value)}.", _way_out(key, expected, value)


def _expected(detail: ErrorDetails) -> list[str]:
    if detail["type"] == "literal_error":
        words = detail["ctx"]["expected"].replace(" or ", ", ").split(", ")
        return [word.strip("'") for word in words]
    return [_EXPECTED[detail["type"]]] if detail["type"] in _EXPECTED else []


def _way_out(key: str, expected: Sequence[str], value: object) -> str:
    if isinstance(value, int | float):
        return "Put it in quotes." if "text" in expected else ""
    if not isinstance(value, str):
        return ""
    if expected == ["a mapping"] and key in _WRAPPED:
        return f"Write {key}: {{{_WRAPPED[key]}: {value}}}."
    if "true or false" in expected:
        words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
        return f"Write {words[value.lower()]}." if value.lower() in words else ""
    if {"a number", "a whole number"} & set(expected) and _is_number(value):
        return "Remove the leading zeros." if value.lstrip("+-")[0] == "0" else "Remove the quotes."
    near = plugins.did_you_mean(value, [word for word in expected if " " not in word])
    return "" if near == "." else near.removeprefix("; ").capitalize()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _show(value: object) -> str:
    match value:
        case None | "":
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            return f"the text {value[:60]!r}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
    return repr(value)
