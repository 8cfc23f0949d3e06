"""YAML for recipes: numbers are numbers, a key stands once, and errors name line and column.

PyYAML reads YAML 1.1, where `1e-5` is text, `010` is eight and `no` is a boolean. Here every usual
spelling of a number is a number, `010` and `08` stay text, and only `true` and `false` are booleans.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

from potstill.errors import RecipeError, RecipeErrors

MOST_VALUES = 100_000  # in one file, aliases written out
_WHOLE = r"(?:0|[1-9][0-9_]*)"
_INTEGER = rf"[-+]?{_WHOLE}|0x[0-9a-fA-F]+"
_FLOAT = rf"[-+]?(?:{_WHOLE}(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
_NOT_FINITE = r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_MERGE = "tag:yaml.org,2002:merge"

# Order matters: the first pattern that matches a plain word decides, so integers stand before floats.
_RESOLVERS = (
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", _INTEGER, "-+0123456789"),
    ("tag:yaml.org,2002:float", rf"{_FLOAT}|{_NOT_FINITE}", "-+.0123456789"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_MERGE, r"<<", "<"),
)


class _Loader(yaml.SafeLoader):
    """SafeLoader with the resolvers above and no key given twice."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.source = source
        self.problems: list[RecipeError] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first_line: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                self._complain(key, "a key must be plain text.", "Put the key in quotes.")
            elif key.value in first_line:
                message = f"the key {key.value!r} is given twice, first on line {first_line[key.value]}."
                self._complain(key, message, "Remove one of the two.")
            else:
                first_line[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def _complain(self, node: yaml.Node, message: str, fix: str) -> None:
        self.problems.append(RecipeError(message, fix=fix, path=_place(self.source, node.start_mark)))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly the words the loader would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _RESOLVERS:
        _class.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), list(_first))
_Loader.yaml_constructors = {  # no dates, sets or binary data, which an explicit tag could ask for
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}


def load_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; `source` names it in errors.

    Raises:
        RecipeError: the text is no YAML, is empty or is no mapping.
        RecipeErrors: names every key that is given twice.
    """
    value = load_value(text, source)
    if not isinstance(value, dict):
        kind = "empty" if value is None else "a list" if isinstance(value, list) else "a single value"
        raise RecipeError(
            f"a recipe is a mapping of keys to values, and this is {kind}.",
            fix="Start with the three keys teacher, student and data.",
            path=source,
        )
    return value


def load_value(text: str, source: str) -> Any:
    """The value that one piece of YAML holds, as on the right of an override."""
    try:
        loader = _Loader(text, source)
        node = loader.get_single_node()
        if node is not None and _unfolded(node, {}) > MOST_VALUES:
            raise ValueError(f"its aliases unfold to more than {MOST_VALUES:,} values")
        value = None if node is None else _unshared(loader.construct_document(node))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _unreadable(error, source) from error
    if loader.problems:
        raise RecipeErrors(loader.problems)
    return value


def _unfolded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node holds once every alias in it is written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        inner = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(_unfolded(one, sizes) for one in inner)
    return sizes[id(node)]


def _unreadable(error: Exception, source: str) -> RecipeError:
    mark, fix = None, "A recipe is plain text in UTF-8, a few levels deep."
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        fix = "Look at this place and the line above: indentation, a colon or a quote is off."
    elif isinstance(error, RecursionError):
        reason = "it nests too deeply or contains itself"
    else:
        reason = str(error).splitlines()[0]
    return RecipeError(f"the YAML cannot be read: {reason}.", fix=fix, path=_place(source, mark))


def to_yaml(data: Any) -> str:
    """YAML text that `load_yaml` reads back to an equal value."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def to_line(data: Any) -> str:
    """The same on one line."""
    text = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=math.inf
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _place(source: str, mark: yaml.Mark | None) -> str:
    return f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source


def _unshared(value: Any) -> Any:
    """Anchored parts copied, so that changing one place never changes another."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value
