"""Every key of a recipe and every plug-in: its type in words, its default, one line and an example.

All of it is read from the specs, from the plug-ins' signatures and from `examples.yaml`. `potstill explain`
prints an entry, and `docs/recipe.md` holds them all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from potstill.console import hung
from potstill.errors import RecipeError
from potstill.recipe import plugins, signatures, yaml
from potstill.recipe.methods import METHODS
from potstill.recipe.options import SCHEDULE, Option
from potstill.recipe.problems import our_name
from potstill.recipe.recipe import json_schema
from potstill.recipe.stages import stage_types
from potstill.recipe.words import REFERENCE, SHAPES, words

EXAMPLES = Path(__file__).with_name("examples.yaml")
TOP = "recipe"  # the path of a recipe's first keys
# A family of plug-ins as readers call it, the folder that holds it, and where a recipe names one.
FAMILIES: Mapping[str, tuple[str, tuple[str, str]]] = {
    "divergences": ("divergences", ("distill", "divergence")),
    "token_weights": ("token_weights", ("distill", "token_weights")),
    "strategies": ("strategies", ("distill", "strategy")),
    "engines": ("generate", ("generate", "engine")),
    "filters": ("filters", ("generate", "filters")),
    "verifiers": ("verifiers", ("generate", "verifier")),
    "metrics": ("evaluate", ("evaluate", "metrics")),
}
# A section whose keys are those of its plug-ins too, and their folder.
PLUGGED = {"teacher": "teachers"}
LISTS = ("metrics", "filters")  # keys that name several
BESIDE = 40  # columns that meanings need beside their keys; else they stand below them
ENTRIES = ("data.mix",)  # sections that stand in a list


@dataclass(frozen=True)
class Entry:
    """One key, section or plug-in. `default` and `example` stand as a recipe writes them, and are "" where there is
    none; `keys` are the paths below."""

    path: str
    type: str
    meaning: str
    required: bool = False
    default: str = ""
    example: str = ""
    keys: tuple[str, ...] = ()

    def text(self, width: int | None = None) -> str:
        """The entry for people; with a width, as of a terminal, its lines are wrapped."""
        default = "none, it is required" if self.required else self.default
        about = {"type": self.type, "default": default, "example": self.example}
        lines = [self.path, *hung("  ", self.meaning, width)]
        for name, value in about.items():
            lines += hung(f"  {name:8} ", value, width) if value else []
        column = max(map(len, self.keys), default=0)
        for key in self.keys:
            beside = width is None or width >= column + BESIDE
            start, meaning = f"    {key:{column}}  " if beside else "      ", entries()[key].meaning
            lines += [*([] if beside else [f"    {key}"]), *hung(start, meaning, width)]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The entry for programs."""
        return asdict(self)


def explain(path: str) -> Entry:
    """The entry of a path such as `distill.temperature`, `divergences.jsd` or `data`.

    Raises:
        RecipeError: there is none; names what is near.
    """
    known = entries()
    wanted = path.strip().removeprefix("stages.") or TOP
    if wanted in known:
        return known[wanted]
    near = _near(wanted, tuple(known))
    fix = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known[TOP].keys)}."
    raise RecipeError("no key of a recipe has this path.", fix=fix, path=path)


def _near(wanted: str, known: Sequence[str]) -> list[str]:
    """Paths that end in the same key, under the name that potstill has for it; else those spelled alike."""
    section, _, key = wanted.rpartition(".")
    places: dict[str, list[str]] = {}  # the sections that hold a key
    for path in known:
        home, _, end = path.rpartition(".")
        places.setdefault(end, []).append(home)
    key = our_name(key)
    if key not in places:
        beside = [end for end, homes in places.items() if section in homes]
        alike = difflib.get_close_matches(key, beside, n=1) or difflib.get_close_matches(key, places, n=1)
        key = alike[0] if alike else ""
    homes = places.get(key, [])
    chosen = [section] if section in homes else homes
    return [f"{home}.{key}" if home else key for home in chosen[:4]]


@cache
def entries() -> Mapping[str, Entry]:
    """Every entry by its path, in the order of the page."""
    schema, examples = json_schema(), yaml.load_yaml(EXAMPLES.read_text(encoding="utf-8"), str(EXAMPLES))
    made = [*_recipe(schema, examples), *(entry for name in FAMILIES for entry in _family(name)), *_methods()]
    return {entry.path: entry for entry in made}


def _recipe(schema: Mapping[str, Any], examples: Mapping[str, Any]) -> Iterator[Entry]:
    shapes = schema["$defs"]
    top = [*schema["properties"], *stage_types(), *FAMILIES, "methods"]
    meaning = "The keys of a recipe, its stages, and what they can name."
    yield Entry(TOP, "a mapping", meaning, keys=tuple(top))
    yield from _keys("", schema, shapes, examples)
    for verb, stage in stage_types().items():
        shape = shapes[stage.__name__]
        keys = tuple(f"{verb}.{key}" for key in shape["properties"])
        kind = f"an entry of stages: {verb}, or {{{verb}: {{OPTION: VALUE}}}}"
        yield Entry(verb, kind, _line(shape["description"]), keys=keys, example=f"- {verb}")
        yield from _keys(verb, shape, shapes, examples)


def _keys(
    section: str, shape: Mapping[str, Any], shapes: Mapping[str, Any], examples: Mapping[str, Any]
) -> Iterator[Entry]:
    """The keys of a section, each followed by what is below it."""
    for key, about in shape["properties"].items():
        path = f"{section}.{key}" if section else key
        inner = _inner(about, shapes)
        meaning = about.get("description") or _inherited(section, key) or inner.get("description", "")
        options = _options_of(path, inner, examples)
        kind = "a list of stages, each VERB or {VERB: {OPTION: VALUE}}" if path == "stages" else words(about)
        yield Entry(
            path,
            kind,
            _line(meaning),
            required=key in shape.get("required", ()),
            default=_default(key, about, shape, inner),
            example=_example(path, section, shape, examples),
            keys=(
                *(f"{path}.{name}" for name in inner.get("properties", ())),
                *(option.path for option in options),
            ),
        )
        if inner:
            yield from _keys(path, inner, shapes, examples)
        yield from options


def _options_of(section: str, inner: Mapping[str, Any], examples: Mapping[str, Any]) -> list[Entry]:
    """What a section may hold for its plug-ins, such as the endpoint of a teacher."""
    if section not in PLUGGED:
        return []
    known = inner.get("properties", ())
    made = [
        _option(
            section, option, _example(path, section, {}, examples), signature.meanings.get(option.name, "")
        )
        for signature in plugins.plugins(PLUGGED[section]).values()
        for option in signature.options
        if option.name not in known and (path := f"{section}.{option.name}") in examples
    ]
    # A plug-in needs it, the section does not; several may have one of a name.
    return [*{entry.path: replace(entry, required=False) for entry in made}.values()]


def _default(key: str, about: Mapping[str, Any], shape: Mapping[str, Any], inner: Mapping[str, Any]) -> str:
    """A value's default; a section has none, since its keys have their own."""
    if inner or key in shape.get("required", ()):
        return ""
    return yaml.to_line(about.get("default", {}))  # only a mapping is made anew for each recipe


def _inner(about: Mapping[str, Any], shapes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section that a key holds, {} for a value."""
    alternatives = about.get("anyOf") or about.get("oneOf") or [about]
    shown = [one.get("items", one) for one in alternatives]
    names = [one["$ref"].removeprefix(REFERENCE) for one in shown if "$ref" in one]
    return next((shapes[name] for name in names if name not in SHAPES), {})


def _inherited(section: str, key: str) -> str:
    """The docstring of a stage's option that the stage states again with a value of its own."""
    classes = stage_types()[section].__mro__ if section in stage_types() else ()
    fields = [getattr(one, "model_fields", {}).get(key) for one in classes]
    return next((field.description for field in fields if field is not None and field.description), "")


def _example(path: str, section: str, shape: Mapping[str, Any], examples: Mapping[str, Any]) -> str:
    """An example as a recipe writes it, from its first key on."""
    own = examples.get(path)
    if own is None:  # an option of every training stage
        own = examples.get(f"training.{path.rpartition('.')[2]}")
    if own is None:
        return ""
    names = section.split(".") if section else []
    for depth in range(len(names), 0, -1):
        own = {names[depth - 1]: [own] if ".".join(names[:depth]) in ENTRIES else own}
    return ("- " if section.partition(".")[0] in stage_types() else "") + yaml.to_line(own)[1:-1]


def _family(name: str) -> Iterator[Entry]:
    """A family of plug-ins, its members and their options."""
    folder, place = FAMILIES[name]
    found = plugins.plugins(folder)
    kind = "a name, or {NAME: {OPTION: VALUE}}; of your own: package.module:function"
    meaning = f"What {'.'.join(place)} can name."
    yield Entry(name, kind, meaning, keys=tuple(f"{name}.{plugin}" for plugin in found))
    for plugin, signature in found.items():
        path = f"{name}.{plugin}"
        example = _naming(place, plugin, {option.name: option.default for option in signature.options})
        options = tuple(f"{path}.{option.name}" for option in signature.options)
        singular = signatures.FAMILIES[folder].singular
        kind = f"a {singular}" + ("" if options else " without options")
        yield Entry(path, kind, signature.purpose, example=example, keys=options)
        for option in signature.options:
            example = _naming(place, plugin, {option.name: option.default})
            yield _option(path, option, example, signature.meanings.get(option.name, ""))


def _option(path: str, option: Option, example: str, meaning: str) -> Entry:
    kind = option.expected + (f" or {SHAPES['Schedule']}" if SCHEDULE in option.kinds else "")
    default = "" if option.required else yaml.to_line(option.default)
    return Entry(
        f"{path}.{option.name}", kind, meaning or f"An option of {path}.", option.required, default, example
    )


def _naming(place: tuple[str, str], plugin: str, options: Mapping[str, Any]) -> str:
    stage, key = place
    named: Any = {plugin: dict(options)} if options else plugin
    return f"- {yaml.to_line({stage: {key: [named] if key in LISTS else named}})[1:-1]}"


def _methods() -> Iterator[Entry]:
    meaning = "Published methods that `method` can name in place of stages."
    yield Entry("methods", "a name", meaning, keys=tuple(f"methods.{name}" for name in METHODS))
    for name, method in METHODS.items():
        stages = yaml.to_line(list(method.stages))
        yield Entry(f"methods.{name}", f"stages {stages}", method.source, example=f"method: {name}")


def _line(text: str) -> str:
    """A docstring on one line."""
    return " ".join(text.split())
