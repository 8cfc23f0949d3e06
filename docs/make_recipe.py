"""Write the tables of `docs/recipe.md` from the specs, plug-ins and errors. python docs/make_recipe.py [--check]"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from potstill import errors
from potstill.recipe.recipe import Recipe
from potstill.recipe.reference import FAMILIES, Entry, entries, explain
from potstill.recipe.stages import stage_types

PAGE = Path(__file__).with_name("recipe.md")
HEAD = ("key", "takes", "default", "what it does", "example")


def cell(text: str) -> str:
    """Text as a table's cell holds it."""
    return text.replace("|", "\\|")


def code(text: str) -> str:
    return f"`{cell(text)}`" if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def row(entry: Entry, name: str) -> list[str]:
    default = "required" if entry.required else code(entry.default)
    return [code(name), cell(entry.type), default, cell(entry.meaning), code(entry.example)]


def section(path: str, left_out: Sequence[str] = ()) -> Iterator[str]:
    """The table of a section's keys, and those of the sections in it."""
    entry = explain(path)
    keys = [explain(key) for key in entry.keys if key not in left_out]
    yield from ["", f"### {path}", "", f"{entry.meaning}", ""]
    yield from table(HEAD, [row(key, key.path.removeprefix(f"{path}.")) for key in keys])
    for key in keys:
        if key.keys:
            yield from section(key.path)


def shared() -> dict[str, list[str]]:
    """The options that every training stage has in the same form, by name, with their paths."""
    training = [verb for verb, stage in stage_types().items() if stage.trains]
    names = [path.removeprefix(f"{training[0]}.") for path in explain(training[0]).keys]
    paths = {name: [f"{verb}.{name}" for verb in training] for name in names}

    def same(found: list[str]) -> bool:
        values = [entries().get(path) for path in found]
        return all(values) and len({(v.type, v.default, v.meaning) for v in values if v}) == 1

    return {name: found for name, found in paths.items() if same(found)}


def keys() -> Iterator[str]:
    """Every key of a recipe by its section."""
    top = [explain(key) for key in Recipe.model_fields]
    yield from ["### At the top", "", *table(HEAD, [row(entry, entry.path) for entry in top])]
    for entry in top:
        if entry.keys:
            yield from section(entry.path)
    common = shared()
    left_out = [path for paths in common.values() for path in paths]
    for verb in stage_types():
        yield from section(verb, left_out)
    names = ", ".join(f"`{verb}`" for verb, stage in stage_types().items() if stage.trains)
    yield from ["", "### Every training stage", "", f"{names} take these too.", ""]
    yield from table(HEAD, [row(explain(paths[1]), name) for name, paths in common.items()])


def plugins() -> Iterator[str]:
    """Every plug-in by its family, with its options and their defaults; and the methods."""
    for family in FAMILIES:
        yield from ["", f"### {family}", "", explain(family).meaning, ""]
        members = [explain(path) for path in explain(family).keys]
        rows = [
            [code(m.path.rpartition(".")[2]), options(m), cell(m.meaning), code(m.example)] for m in members
        ]
        yield from table(("name", "options, with their defaults", "what it is", "example"), rows)
    yield from ["", "### methods", "", explain("methods").meaning, ""]
    rows = [
        [code(m.path.rpartition(".")[2]), code(m.type.removeprefix("stages ")), cell(m.meaning)]
        for m in map(explain, explain("methods").keys)
    ]
    yield from table(("name", "stages", "what it is"), rows)


def options(plugin: Entry) -> str:
    """A plug-in's options with their defaults and what they take."""
    found = [(key.rpartition(".")[2], explain(key)) for key in plugin.keys]
    return "; ".join(
        f"{code(f'{name}: {option.default}')}, {cell(option.type.partition(' such as')[0])}"
        for name, option in found
    )


def exits() -> Iterator[str]:
    """Every exit code as the module of errors states it, with the values of `error.code` that belong to it."""
    stated = " ".join((errors.__doc__ or "").partition("Exit codes:")[2].split()).rstrip(".")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.code: kind.exit_code for kind in kinds if "code" in vars(kind)} | {"interrupted": 130}
    rows = [["`0`", "Done.", ""]]
    for number, _, meaning in (text.strip().partition(" ") for text in stated.split(";")):
        own = [code(name) for name, of in codes.items() if of == int(number)]
        rows.append([code(number), f"{meaning[0].upper()}{meaning[1:]}.", ", ".join(own)])
    yield from table(("exit code", "what it means", "`error.code` with --json"), rows)


TABLES = {"keys": keys, "plugins": plugins, "exits": exits}


def page() -> str:
    """The page with today's tables."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = text.partition(begin)
        made = "\n".join(lines()).strip("\n")
        text = f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}"
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
