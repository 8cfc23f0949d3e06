"""Every setting of a recipe with its value, and where that comes from."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from potstill.recipe.defaults import Default
from potstill.recipe.recipe import Recipe
from potstill.recipe.specs import Choice, Spec
from potstill.recipe.stages import StageSpec

Source = Literal["recipe", "default", "auto"]
SECTIONS = ("teacher", "student", "data", "task", "costs", "devices")
MARKS: Mapping[Source, str] = {"recipe": "*", "default": "", "auto": "°"}
KEPT = "\u00a0"  # a space at which no line ends
LEGEND = "settings (* as the recipe says, ° what `auto` becomes, all others by default):"


@dataclass(frozen=True)
class Setting:
    """One key of a recipe. `auto`: the value is what it becomes here."""

    path: str
    value: Any
    source: Source


def settings(recipe: Recipe, resolved: Sequence[StageSpec], became: Sequence[Default]) -> tuple[Setting, ...]:
    """All settings in the recipe's order; `became` has the values of those that are `auto` as written."""
    chosen = {default.path: default.value for default in became}
    top = recipe.model_copy(update={"stages": (), "method": None})
    found = list(_of(top, "", ("version", "name", *SECTIONS, "method", "stages"), chosen))
    for name in SECTIONS:
        if getattr(recipe, name) is not None:
            found += _of(getattr(recipe, name), f"{name}.", (), chosen)
    for stage, written in zip(resolved, recipe.stages, strict=True):
        found += _of(stage, f"stages.{stage.name}.", ("verb", "name"), chosen, written)
    return tuple(found)


def _of(
    spec: Spec, prefix: str, without: Sequence[str], chosen: Mapping[str, Any], written: Spec | None = None
) -> Iterator[Setting]:
    values = spec.model_dump(mode="json", by_alias=True)
    if isinstance(spec, Choice):
        yield Setting(prefix.rstrip("."), values, "recipe")
        return
    fields = type(spec).model_fields
    stated = {fields[name].alias or name for name in (written or spec).model_fields_set}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key in without:
            continue
        if path in chosen:
            yield Setting(path, chosen[path], "auto")
        else:
            yield Setting(path, value, "recipe" if key in stated and value != "auto" else "default")


def lines(every: Sequence[Setting], width: int) -> Iterator[str]:
    """The settings as paragraphs, one a section."""
    sections = groupby(every, key=lambda setting: setting.path.rpartition(".")[0])
    for section, members in sections:
        head = f"{section.removeprefix('stages.') or 'recipe'}: "
        words = " · ".join(_words(setting).replace(" ", KEPT) for setting in members)
        paragraph = textwrap.wrap(
            head + words,
            width,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        yield from (line.replace(KEPT, " ") for line in paragraph)


def _words(setting: Setting) -> str:
    value = setting.value
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )
    return f"{setting.path.rpartition('.')[2]} {text}{MARKS[setting.source]}"
