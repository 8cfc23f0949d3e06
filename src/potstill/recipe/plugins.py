"""Plug-ins: their names and options, read from source by `ast`, and their code.

A recipe is checked and its schema printed without importing a plug-in, and so without torch. Only `load`
imports one.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe.options import Option, literal, read_options
from potstill.store.artifacts import file_hash

# The public functions, one of which makes a file of this folder a plug-in; the first one states the options.
FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "divergences": ("value", "value_and_partial"),
    "evaluate": ("measure",),
    "generate": ("write",),
    "strategies": ("build",),
    "students": ("build",),
    "teachers": ("build",),
    "token_weights": ("weights",),
}

# Families whose options may move over a stage, as a temperature does.
MOVING = frozenset({"divergences"})
_SINGULAR = {
    "divergences": "divergence",
    "evaluate": "metric",
    "generate": "text engine",
    "strategies": "strategy",
    "students": "student",
    "teachers": "teacher",
    "token_weights": "token weight",
}
_OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Signature:
    """What a plug-in's source states: its purpose, its options in order and its file's UPPERCASE literals."""

    name: str
    purpose: str
    options: tuple[Option, ...]
    constants: Mapping[str, object]
    file: Path


def plugins(family: str) -> dict[str, Signature]:
    """All plug-ins of a family by name: the files of its folder that define one of its functions."""
    files = sorted((PACKAGE / family).glob("[!_]*.py"))
    signatures = {file.stem: _read(family, file, file.stat().st_mtime_ns) for file in files}
    return {name: signature for name, signature in signatures.items() if signature is not None}


@cache
def _read(family: str, file: Path, _changed: int) -> Signature | None:
    """The signature of a file, None where it defines none of the family's functions."""
    tree = ast.parse(file.read_bytes(), filename=str(file))
    functions = _functions(tree)
    name = next((name for name in FUNCTIONS[family] if name in functions), None)
    return None if name is None else _signature(family, file.stem, functions[name], tree, file)


def is_outside(name: str) -> bool:
    """Whether a name has the form `package.module:function`."""
    return _OUTSIDE.fullmatch(name) is not None


def find(family: str, name: str, path: str = "") -> Signature:
    """The signature of a plug-in of this package, or of `package.module:function`.

    Raises:
        RecipeError: there is none; `path` is where in the recipe the name stands.
    """
    if is_outside(name):
        return _find_outside(family, name, path)
    signatures = plugins(family)
    if name not in signatures:
        raise RecipeError(
            f"no {_SINGULAR[family]} is called {name!r}{did_you_mean(name, signatures)}",
            fix=f"Known: {', '.join(signatures) or 'none'}; or package.module:function from outside.",
            path=path,
            value=name,
        )
    return signatures[name]


def requiring(family: str, options: Iterable[str]) -> str | None:
    """The plug-in whose required options are all among these, the one that requires most; None without one."""
    given = set(options)
    required = {
        name: {option.name for option in signature.options if option.required}
        for name, signature in plugins(family).items()
    }
    fitting = [name for name, needed in required.items() if needed and needed <= given]
    return max(fitting, key=lambda name: len(required[name]), default=None)


def check_options(family: str, name: str, options: Mapping[str, Any], path: str) -> list[RecipeError]:
    """Everything wrong with a plug-in's name and options."""
    try:
        signature = find(family, name, path)
    except RecipeError as error:
        return [error]
    return list(_wrong_options(signature, options, f"{path}.{name}"))


def load(family: str, name: str, options: Mapping[str, Any] | None = None, path: str = "") -> Any:
    """The plug-in's module. For `package.module:function` an object that looks like one: `__name__`, the
    function under the family's name for it, and all else that the module makes public.

    Args:
        family: a key of `FUNCTIONS`.
        name: a file of that folder, or `package.module:function`.
        options: checked against the function's keyword-only arguments.
        path: where in the recipe the name stands, for errors.

    Raises:
        RecipeErrors: the name is unknown or options are wrong.
        RecipeError: code from outside cannot be imported.
    """
    where = path or family
    problems = check_options(family, name, options or {}, where)
    if problems:
        raise RecipeErrors(problems)
    if not is_outside(name):
        return importlib.import_module(f"potstill.{family}.{name}")
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise _cannot_import(name, error, where) from error
    called = function if function in FUNCTIONS[family] else FUNCTIONS[family][0]
    beside = {
        key: value
        for key, value in vars(module).items()
        if not key.startswith("_") and key not in FUNCTIONS[family]
    }
    return SimpleNamespace(**beside | {"__name__": name, called: getattr(module, function)})


def constants(family: str, name: str) -> Mapping[str, object]:
    """The UPPERCASE literals of a plug-in's file: what it states without being imported.

    Raises:
        RecipeError: there is no such plug-in.
    """
    return find(family, name, family).constants


def identity(family: str, name: str, options: Mapping[str, Any]) -> list[Any]:
    """What identifies a plug-in in an artifact's key; of one from outside also the hash of its source file."""
    if not is_outside(name):
        return [name, options]
    return [name, options, file_hash(find(family, name).file)]


def schema(family: str) -> dict[str, Any]:
    """JSON schema of a choice from a family: a name, or `{name: options}`."""
    signatures = plugins(family)
    return {
        "anyOf": [
            {"enum": list(signatures)},
            {"type": "string", "pattern": f"^{_OUTSIDE.pattern}$"},
            {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "properties": {name: _options_schema(signature) for name, signature in signatures.items()},
                "patternProperties": {f"^{_OUTSIDE.pattern}$": {"type": ["object", "null"]}},
                "additionalProperties": False,
            },
        ]
    }


def did_you_mean(word: str, words: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a sentence: `; did you mean X?`, or a full stop when nothing is near."""
    near = difflib.get_close_matches(word, list(words), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else "."


def _find_outside(family: str, name: str, path: str) -> Signature:
    module_name, _, function = name.partition(":")
    try:
        file = _source_file(module_name)
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        raise _cannot_import(name, error, path) from error
    functions = _functions(tree)
    if function not in functions:
        raise RecipeError(
            f"{module_name} has no function {function}{did_you_mean(function, functions)}",
            fix="The name after the colon is a function that the module itself defines.",
            path=path,
            value=name,
        )
    return _signature(family, name, functions[function], tree, file)


def _source_file(module: str) -> Path:
    """Where a module's source is; imports the packages above it, not the module itself."""
    if module in sys.modules:
        return Path(getattr(sys.modules[module], "__file__", None) or "")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    return Path(spec.origin or "")


def _cannot_import(name: str, error: Exception, path: str) -> RecipeError:
    return RecipeError(
        f"{name.partition(':')[0]} cannot be imported: {error}.",
        fix="Install the package, or add its folder to PYTHONPATH; its source must be Python.",
        path=path,
        value=name,
    )


def _functions(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _signature(family: str, name: str, function: ast.FunctionDef, tree: ast.Module, file: Path) -> Signature:
    purpose = ast.get_docstring(tree) or ast.get_docstring(function) or ""
    options = read_options(function.args, moving=family in MOVING)
    return Signature(name, purpose.partition("\n")[0], options, dict(_constants(tree)), file)


def _constants(tree: ast.Module) -> Iterator[tuple[str, object]]:
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        value = literal(node.value)
        if isinstance(target, ast.Name) and target.id.isupper() and value is not None:
            yield target.id, value


def _wrong_options(signature: Signature, options: Mapping[str, Any], path: str) -> Iterator[RecipeError]:
    """Options that the signature does not have, cannot hold or misses."""
    by_name = {option.name: option for option in signature.options}
    for key, value in options.items():
        if key not in by_name:
            yield RecipeError(
                f"unknown option{did_you_mean(key, by_name)}",
                fix=f"{signature.name} takes {', '.join(by_name) or 'no options'}.",
                path=f"{path}.{key}",
                value=value,
            )
        elif not by_name[key].fits(value):
            yield RecipeError(
                f"must be {by_name[key].expected}, not {value!r}.", path=f"{path}.{key}", value=value
            )
    for key, option in by_name.items():
        if option.required and key not in options:
            yield RecipeError(
                "is missing.", fix=f"{signature.name} needs {option.expected} here.", path=f"{path}.{key}"
            )


def _options_schema(signature: Signature) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "description": signature.purpose,
        "properties": {option.name: option.schema for option in signature.options},
        "required": [option.name for option in signature.options if option.required],
        "additionalProperties": False,
    }
