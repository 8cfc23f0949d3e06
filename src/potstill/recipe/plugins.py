"""Plug-ins: their names and options, read from source by `ast`, and their code. Only `load` imports one."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from potstill.errors import PluginError, RecipeError, RecipeErrors
from potstill.recipe.options import one_key
from potstill.recipe.signatures import FAMILIES, Signature, functions_of, signature_of
from potstill.recipe.sources import source_hash

PACKAGE = Path(__file__).parent.parent
_OUTSIDE_FILES: dict[str, str] = {}  # source file -> the plug-in's name, of all that were loaded
_OUTSIDE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def plugins(family: str) -> dict[str, Signature]:
    """Every plug-in of a family by name: each file of its folder that defines one of its functions."""
    files = sorted((PACKAGE / family).glob("[!_]*.py"))
    signatures = {file.stem: _read(family, file, file.stat().st_mtime_ns) for file in files}
    return {name: signature for name, signature in signatures.items() if signature is not None}


@cache
def _read(family: str, file: Path, _changed: int) -> Signature | None:
    tree = ast.parse(file.read_bytes(), filename=str(file))
    functions = functions_of(tree)
    for name in FAMILIES[family].functions:
        if name in functions:
            return signature_of(family, file.stem, functions[name], tree, file)
    return None


def is_outside(name: str) -> bool:
    """Whether a name has the form `package.module:function`."""
    return _OUTSIDE.fullmatch(name) is not None


def find(family: str, name: str, path: str = "") -> Signature:
    """Read the signature of a plug-in of this package, or of `package.module:function`.

    Raises:
        RecipeError: there is none; `path` is where in the recipe the name stands.
    """
    if is_outside(name):
        return _find_outside(family, name, path)
    signatures = plugins(family)
    if name not in signatures:
        raise RecipeError(
            f"no {FAMILIES[family].singular} is called {name!r}{did_you_mean(name, signatures)}",
            fix=f"Known: {', '.join(signatures) or 'none'}; or package.module:function from outside.",
            path=path,
            value=name,
        )
    return signatures[name]


def requiring(family: str, options: Iterable[str]) -> str | None:
    """The plug-in whose required options are all among these, the one that takes and requires most of them; None
    without one."""
    given = set(options)
    fitting = [
        signature
        for signature in plugins(family).values()
        if (needed := {option.name for option in signature.options if option.required}) and needed <= given
    ]

    def fit(signature: Signature) -> tuple[int, int]:
        taken = sum(option.name in given for option in signature.options)
        return taken, sum(option.required for option in signature.options)

    best = max(fitting, key=fit, default=None)
    return None if best is None else best.name


def requirements(family: str) -> dict[str, list[str]]:
    """The options that plug-ins of a family require, and the names of those that do."""
    required: dict[str, list[str]] = {}
    for signature in plugins(family).values():
        for option in signature.options:
            if option.required:
                required.setdefault(option.name, []).append(signature.name)
    return required


def check_options(family: str, name: str, options: Mapping[str, Any], path: str) -> list[RecipeError]:
    """Everything wrong with a plug-in's name and options."""
    try:
        return list(_wrong_options(find(family, name, path), options, f"{path}.{name}"))
    except RecipeError as error:
        return [error]


def load(family: str, name: str, options: Mapping[str, Any] | None = None, path: str = "") -> Any:
    """Import a plug-in's module. For `package.module:function` an object that looks like one: `__name__`, the
    function under the family's name for it, and all else that the module makes public.

    Args:
        family: a key of `FAMILIES`.
        name: a file of that folder, or `package.module:function`.
        options: checked against the function's keyword-only arguments.
        path: where in the recipe it stands, for errors.

    Raises:
        RecipeErrors: the name is unknown or options are wrong.
        RecipeError: code from outside cannot be imported.
    """
    problems = check_options(family, name, options or {}, family)
    if problems:
        raise RecipeErrors(problems)
    if not is_outside(name):
        return importlib.import_module(f"potstill.{family}.{name}")
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's own code may raise anything
        raise _cannot_import(name, error, path or family) from error
    _OUTSIDE_FILES[str(module.__file__)] = name
    functions = FAMILIES[family].functions
    public = {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in functions}
    called = function if function in functions else functions[0]
    return SimpleNamespace(**public | {"__name__": name, called: getattr(module, function)})


def fault(error: BaseException) -> PluginError | None:
    """The plug-in from outside in whose code an error arose; None where no such code was running."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = _OUTSIDE_FILES.get(frame.f_code.co_filename)
        if name is not None:
            return PluginError(
                f"{name} failed: {type(error).__name__}: {error}.",
                fix="It is code from outside potstill; the lines above say where in it.",
            )
    return None


def identity(family: str, name: str, options: Mapping[str, Any]) -> list[Any]:
    """What identifies a plug-in in an artifact's key. Of one from outside, and of all that judge what is stored, also
    the hash of its source with the helpers that it imports; what others here do is versioned by their stages."""
    module = name.partition(":")[0] if is_outside(name) else f"potstill.{family}.{name}"
    hashed = is_outside(name) or FAMILIES[family].judges
    return [name, options, *([source_hash(module, find(family, name).file)] if hashed else [])]


def schema(family: str, beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """JSON schema of a choice from a family: a name, or `{name: options}`; `beside` are keys beside the options."""
    signatures, outside = plugins(family), f"^{_OUTSIDE.pattern}$"
    named = one_key(
        {name: _options_schema(signature, beside or {}) for name, signature in signatures.items()}
    )
    named["patternProperties"] = {outside: {"type": ["object", "null"]}}
    return {"anyOf": [{"enum": list(signatures)}, {"type": "string", "pattern": outside}, named]}


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
    functions = functions_of(tree)
    if function not in functions:
        raise RecipeError(
            f"{module_name} has no function {function}{did_you_mean(function, functions)}",
            fix="The name after the colon is a function that the module itself defines.",
            path=path,
            value=name,
        )
    return signature_of(family, name, functions[function], tree, file)


def _source_file(module: str) -> Path:
    """Where a module's source is; imports the packages above it, not the module itself."""
    if module in sys.modules:
        return Path(getattr(sys.modules[module], "__file__", None) or "")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    return Path(spec.origin or "")


def _cannot_import(name: str, error: Exception, path: str) -> RecipeError:
    reason = (
        str(error)
        if isinstance(error, ImportError | OSError | SyntaxError)
        else f"{type(error).__name__}: {error}"
    )
    return RecipeError(
        f"{name.partition(':')[0]} cannot be imported: {reason}.",
        fix="Install the package, or add its folder to PYTHONPATH; its source must be Python.",
        path=path,
        value=name,
    )


def _wrong_options(signature: Signature, options: Mapping[str, Any], path: str) -> Iterator[RecipeError]:
    by_name = {option.name: option for option in signature.options}
    moved: Mapping[str, str] = signature.constants.get("MOVED", {})
    for key, value in options.items():
        if key in moved:
            yield RecipeError(
                f"is no option of {signature.name} any more.",
                fix=f"Write {moved[key]}.",
                path=f"{path}.{key}",
                value=value,
            )
        elif key not in by_name:
            yield RecipeError(
                f"unknown option{did_you_mean(key, by_name)}",
                fix=f"{signature.name} takes {', '.join(by_name) or 'no options'}.",
                path=f"{path}.{key}",
                value=value,
            )
        elif not by_name[key].fits(value):
            message = f"must be {by_name[key].expected}, not {value!r}."
            yield RecipeError(message, path=f"{path}.{key}", value=value)
    for key, option in by_name.items():
        if option.required and key not in options:
            fix = f"{signature.name} needs {option.expected} here."
            yield RecipeError("is missing.", fix=fix, path=f"{path}.{key}")


def _options_schema(signature: Signature, beside: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "description": signature.purpose,
        "properties": {option.name: option.schema for option in signature.options} | dict(beside),
        "required": [option.name for option in signature.options if option.required],
        "additionalProperties": False,
    }
