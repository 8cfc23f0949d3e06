"""Overrides: `key.path=value` set in a raw recipe before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe import plugins, yaml
from potstill.recipe.methods import method_for, stages_of
from potstill.recipe.problems import stage_names
from potstill.recipe.verbs import verbs


def apply(raw: Mapping[str, Any], overrides: Sequence[str], top_level: Sequence[str]) -> dict[str, Any]:
    """Copy a raw recipe with `key.path=value` set; a stage is reached by its name.

    `top_level` are the keys of a recipe. Raises RecipeErrors with every override that reaches nothing;
    an unknown key at the end of a path is refused later, with the recipe's own.
    """
    changed = copy.deepcopy(dict(raw))
    problems: list[RecipeError] = []
    for override in overrides:
        try:
            _set(changed, override, top_level)
        except RecipeError as error:
            problems += error.problems if isinstance(error, RecipeErrors) else [error]
    if problems:
        raise RecipeErrors(problems)
    return changed


def _set(raw: dict[str, Any], override: str, top_level: Sequence[str]) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(
            f"the override {override!r} is not of the form key.path=value.",
            fix="Write for instance distill.epochs=2.",
            value=override,
        )
    value = yaml.load_value(text, f"override {path}")
    node = raw
    if len(keys) == 1 and keys[0] not in _starts(raw, top_level):
        node[keys[0]] = (
            value  # refused with the recipe's other keys, and there with the place where it belongs
        )
        return
    if keys[0] not in top_level or (keys[0] == "stages" and len(keys) > 1):
        name, *keys = keys[1:] if keys[0] == "stages" else keys
        node = _stage_options(raw, name, path, top_level)
        if not keys:
            fix = f"Name one of its keys: {path}.KEY=VALUE."
            raise RecipeError(f"{path} is a whole stage.", fix=fix, path=path)
    for depth, key in enumerate(keys[:-1]):
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            within = ".".join(keys[: depth + 1])
            message = f"{within} is {node!r}, so nothing can be set inside it."
            raise RecipeError(message, fix=f"Set {within} as a whole.", path=path)
    node[keys[-1]] = value


def _stages(raw: Mapping[str, Any]) -> Any:
    """The stages of a raw recipe, those that it implies included."""
    return raw.get("stages") or stages_of(raw.get("method") or method_for(raw.get("teacher")))


def _starts(raw: Mapping[str, Any], top_level: Sequence[str]) -> list[str]:
    """What an override may start with."""
    names = stage_names(_stages(raw))
    return [*top_level, *(name for name in names if name)]


def _stage_options(raw: dict[str, Any], name: str, path: str, top_level: Sequence[str]) -> dict[str, Any]:
    """The options of the stage called `name`, ready to be changed in place."""
    stages = _stages(raw)
    names = stage_names(stages)
    if name not in names:
        if name in verbs():
            message = f"the recipe has no {name} stage."
            raise RecipeError(message, fix=f"Add `- {name}` to its stages.", path=path)
        starts = _starts(raw, top_level)
        message = f"the override reaches nothing{plugins.did_you_mean(name, starts)}"
        raise RecipeError(message, fix=f"It starts with one of: {', '.join(starts)}.", path=path)
    if not raw.get("stages"):
        # The stages were implied; once one of them is changed they have to stand there.
        raw["stages"] = stages
        raw.pop("method", None)
    stage = stages[names.index(name)]
    verb, options = next(iter(stage.items())) if isinstance(stage, dict) else (stage, None)
    options = options or {}
    stages[names.index(name)] = {verb: options}
    return options
