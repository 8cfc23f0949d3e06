"""What each plug-in is called and which options it takes, read from source by `ast`.

Nothing is imported, so a recipe is checked and its schema printed without torch.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import RecipeError

# The one public function that makes a file of this folder a plug-in.
FUNCTIONS: Mapping[str, str] = {
    "divergences": "value",
    "strategies": "build",
    "teachers": "build",
    "token_weights": "weights",
}

# Families whose options may move over a stage, as a temperature does.
MOVING = frozenset({"divergences"})
_SINGULAR = {
    "divergences": "divergence",
    "strategies": "strategy",
    "teachers": "teacher",
    "token_weights": "token weight",
}
_OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Kind:
    """One alternative of an annotation: how it is called, its JSON schema, and what fits."""

    words: str
    schema: Mapping[str, Any]
    fits: Callable[[object], bool]


@dataclass(frozen=True)
class Option:
    """A keyword-only argument: its annotation as written and its default, if the source states one."""

    name: str
    annotation: str
    required: bool
    default: object = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The annotation's alternatives; one that is not known here accepts everything."""
        return _kinds(self.annotation)

    @property
    def expected(self) -> str:
        """The annotation in words."""
        return " or ".join(kind.words for kind in self.kinds)


@dataclass(frozen=True)
class Signature:
    """A plug-in: its name, what its source says it is, and its options in order."""

    name: str
    purpose: str
    options: tuple[Option, ...]


def plugins(family: str, root: Path | None = None) -> dict[str, Signature]:
    """All plug-ins of a family by name: the files of `root/family` that define its public function.

    `root` is this package when not given.
    """
    found = {}
    for file in sorted(((root or PACKAGE) / family).glob("*.py")):
        if file.name.startswith("_"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == FUNCTIONS[family]:
                purpose = (ast.get_docstring(tree) or ast.get_docstring(node) or "").partition("\n")[0]
                found[file.stem] = Signature(file.stem, purpose, _options(node.args))
    return found


def is_outside(name: str) -> bool:
    """Whether a name has the form `package.module:function`."""
    return _OUTSIDE.fullmatch(name) is not None


def check_options(
    family: str, name: str, options: Mapping[str, Any], path: str, root: Path | None = None
) -> list[RecipeError]:
    """Everything wrong with a plug-in's name and options.

    Options of a plug-in from outside are checked when it is loaded: reading them would import it.
    """
    if is_outside(name):
        return []
    known = plugins(family, root)
    if name not in known:
        return [
            RecipeError(
                f"no {_SINGULAR[family]} is called {name!r}{did_you_mean(name, known)}",
                fix=f"Known: {', '.join(known) or 'none'}; or package.module:function from outside.",
                path=path,
                value=name,
            )
        ]
    return check_signature(known[name], options, f"{path}.{name}", moving=family in MOVING)


def check_signature(
    signature: Signature, options: Mapping[str, Any], path: str, *, moving: bool = False
) -> list[RecipeError]:
    """Options that the signature does not know, misses or cannot hold; `moving` lets numbers be schedules."""
    known = {option.name: option for option in signature.options}
    problems = []
    for key, value in options.items():
        if key not in known:
            problems.append(
                RecipeError(
                    f"unknown option{did_you_mean(key, known)}",
                    fix=f"{signature.name} takes {', '.join(known) or 'no options'}.",
                    path=f"{path}.{key}",
                    value=value,
                )
            )
        elif moving and _is_schedule(value) and any(kind.words == _NUMBER for kind in known[key].kinds):
            continue
        elif not any(kind.fits(value) for kind in known[key].kinds):
            problems.append(
                RecipeError(
                    f"must be {known[key].expected}, not {value!r}.", path=f"{path}.{key}", value=value
                )
            )
    problems += [
        RecipeError(
            "is missing.", fix=f"{signature.name} needs {option.expected} here.", path=f"{path}.{key}"
        )
        for key, option in known.items()
        if option.required and key not in options
    ]
    return problems


def schema(family: str, root: Path | None = None) -> dict[str, Any]:
    """JSON schema of a choice from a family: a name, or `{name: options}`."""
    known = plugins(family, root)
    return {
        "anyOf": [
            {"enum": list(known)},
            {"type": "string", "pattern": f"^{_OUTSIDE.pattern}$"},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "properties": {
                    name: _options_schema(signature, family in MOVING) for name, signature in known.items()
                },
                "patternProperties": {f"^{_OUTSIDE.pattern}$": {"type": ["object", "null"]}},
                "additionalProperties": False,
            },
        ]
    }


_SPAN_SCHEMA = {
    "type": "object",
    "properties": {"from": {"type": "number"}, "to": {"type": "number"}},
    "required": ["from", "to"],
    "additionalProperties": False,
}
_SCHEDULE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {"linear": _SPAN_SCHEMA, "cosine": _SPAN_SCHEMA},
    "additionalProperties": False,
}


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a sentence: `; did you mean X?`, or a full stop when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else "."


def _options_schema(signature: Signature, moving: bool) -> dict[str, Any]:
    properties = {}
    for option in signature.options:
        alternatives = [dict(kind.schema) for kind in option.kinds]
        if moving and any(kind.words == _NUMBER for kind in option.kinds):
            alternatives.append(_SCHEDULE_SCHEMA)
        shape = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
        properties[option.name] = shape if option.default is None else shape | {"default": option.default}
    return {
        "type": ["object", "null"],
        "description": signature.purpose,
        "properties": properties,
        "required": [option.name for option in signature.options if option.required],
        "additionalProperties": False,
    }


def _options(arguments: ast.arguments) -> tuple[Option, ...]:
    return tuple(
        Option(
            name=argument.arg,
            annotation=ast.unparse(argument.annotation) if argument.annotation else "",
            required=default is None,
            default=_literal(default),
        )
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    )


def _literal(node: ast.expr | None) -> object:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _kinds(annotation: str) -> tuple[Kind, ...]:
    if not annotation:
        return (_ANYTHING,)
    pending, kinds = [ast.parse(annotation, mode="eval").body], []
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            pending[:0] = [node.left, node.right]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith("Literal"):
            choices = ast.literal_eval(node.slice)
            kinds.append(_one_of(choices if isinstance(choices, tuple) else (choices,)))
        else:
            kinds.append(_KINDS.get(ast.unparse(node), _ANYTHING))
    return tuple(kinds)


def _one_of(choices: tuple[object, ...]) -> Kind:
    words = " or ".join(str(choice) for choice in choices)
    return Kind(words, {"enum": list(choices)}, lambda value: value in choices)


def _is_schedule(value: object) -> bool:
    """Whether this is `{linear: {from: a, to: b}}` or the same with cosine."""
    if not isinstance(value, dict) or len(value) != 1:
        return False
    ((shape, ends),) = value.items()
    if shape not in ("linear", "cosine") or not isinstance(ends, dict) or set(ends) != {"from", "to"}:
        return False
    return all(_is_number(end) for end in ends.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_NUMBER = "a finite number"
_ANYTHING = Kind("a value", {}, lambda value: True)
_KINDS: Mapping[str, Kind] = {
    "float": Kind(_NUMBER, {"type": "number"}, _is_number),
    "int": Kind("a whole number", {"type": "integer"}, lambda v: isinstance(v, int) and _is_number(v)),
    "bool": Kind("true or false", {"type": "boolean"}, lambda v: isinstance(v, bool)),
    "str": Kind("text", {"type": "string"}, lambda v: isinstance(v, str)),
    "None": Kind("null", {"type": "null"}, lambda v: v is None),
}
