"""What an option of a plug-in accepts, read from the annotation in its source.

Written by hand instead of a pydantic model: `DistillationLoss` checks options too, and it needs torch only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One alternative of an annotation: in words, as JSON schema, and as a check."""

    words: str
    schema: Mapping[str, Any]
    fits: Callable[[object], bool]


@dataclass(frozen=True)
class Option:
    """A keyword-only argument: what fits, and the default that the source states."""

    name: str
    kinds: tuple[Kind, ...]
    required: bool
    default: object = None

    @property
    def expected(self) -> str:
        """What fits in words."""
        return " or ".join(kind.words for kind in self.kinds if kind is not SCHEDULE)

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of a value."""
        alternatives = [dict(kind.schema) for kind in self.kinds]
        schema = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
        return schema if self.default is None else schema | {"default": self.default}

    def fits(self, value: object) -> bool:
        """Whether a value is one of the alternatives."""
        return any(kind.fits(value) for kind in self.kinds)


def read_options(arguments: ast.arguments, *, moving: bool) -> tuple[Option, ...]:
    """The keyword-only arguments of a function in order; `moving` lets numbers be schedules too."""
    options = []
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        kinds = tuple(_alternatives(argument.annotation))
        if moving and _NUMBER in kinds:
            kinds = (*kinds, SCHEDULE)
        value = None if default is None else literal(default)
        options.append(Option(argument.arg, kinds, required=default is None, default=value))
    return tuple(options)


def literal(node: ast.expr) -> Any:
    """The value of a literal, `frozenset({...})` included; None for any other expression."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "frozenset":
        values = literal(node.args[0]) if node.args else ()
        return None if values is None else frozenset(values)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def one_key(properties: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema of an object with exactly one of these keys."""
    return {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": properties,
        "additionalProperties": False,
    }


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max  # a whole number may be too large for a float


def _is_schedule(value: object) -> bool:
    """Whether `specs.Schedule`, which needs pydantic, would take it."""
    match value:
        case {"linear": dict(span), **others} | {"cosine": dict(span), **others}:
            return not others and set(span) == {"from", "to"} and all(map(_is_number, span.values()))
    return False


_SPAN = {
    "type": "object",
    "properties": {"from": {"type": "number"}, "to": {"type": "number"}},
    "required": ["from", "to"],
    "additionalProperties": False,
}
_NUMBER = Kind("a finite number", {"type": "number"}, _is_number)
SCHEDULE = Kind("a schedule", one_key({"linear": _SPAN, "cosine": _SPAN}), _is_schedule)
_ANYTHING = Kind("a value", {}, lambda value: True)
_KINDS: Mapping[str, Kind] = {
    "float": _NUMBER,
    "int": Kind("a whole number", {"type": "integer"}, lambda v: isinstance(v, int) and _is_number(v)),
    "bool": Kind("true or false", {"type": "boolean"}, lambda v: isinstance(v, bool)),
    "str": Kind("text", {"type": "string"}, lambda v: isinstance(v, str)),
    "list": Kind("a list", {"type": "array"}, lambda v: isinstance(v, list | tuple)),
    "None": Kind("null", {"type": "null"}, lambda v: v is None),
}


def _alternatives(annotation: ast.expr | None) -> Iterator[Kind]:
    """The kinds that `A | B` names; any other annotation accepts everything."""
    match annotation:
        case None:
            yield _ANYTHING
        case ast.Constant(value=str() as text):
            yield from _alternatives(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            yield from _alternatives(left)
            yield from _alternatives(right)
        case ast.Subscript(value=ast.Name(id="Literal") | ast.Attribute(attr="Literal"), slice=choices):
            value = ast.literal_eval(choices)
            yield _one_of(value if isinstance(value, tuple) else (value,))
        case _:
            yield _KINDS.get(ast.unparse(annotation), _ANYTHING)


def _one_of(choices: tuple[object, ...]) -> Kind:
    words = " or ".join(str(choice) for choice in choices)
    return Kind(words, {"enum": list(choices)}, lambda value: value in choices)


def meanings_in(docstring: str) -> Iterator[tuple[str, str]]:
    """What the section Args of a docstring says of each argument, on one line."""
    lines = docstring.partition("Args:\n")[2].partition("\n\n")[0].splitlines()
    entries: list[str] = []
    for line in lines:
        if line.startswith("     "):  # a line goes on
            entries[-1] += f" {line.strip()}"
        else:
            entries.append(line.strip())
    for entry in entries:
        names, _, text = entry.partition(": ")
        for name in names.split(", "):
            yield name, f"{text[:1].upper()}{text[1:]}"
