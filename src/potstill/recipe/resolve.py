"""From a plug-in's name to its code. Only `run` and `loss` use this."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from potstill.errors import RecipeError, RecipeErrors
from potstill.recipe import plugins


def load(family: str, name: str, options: Mapping[str, Any] | None = None, path: str = "") -> Any:
    """The plug-in's module, or for `package.module:function` a namespace with that one function.

    Args:
        family: divergences, strategies, teachers or token_weights.
        name: a file of that folder, or `package.module:function`.
        options: when given, checked against the function's keyword-only arguments.
        path: where in the recipe the name stands, for errors.

    Raises RecipeErrors for an unknown name or wrong options, RecipeError when code from outside
    cannot be imported.
    """
    where = path or family
    problems = plugins.check_options(family, name, options or {}, where)
    if not plugins.is_outside(name):
        if problems:
            raise RecipeErrors(problems)
        return importlib.import_module(f"potstill.{family}.{name}")
    function = _import(name, where)
    if options is not None:
        problems = plugins.check_signature(
            _signature(name, function), options, f"{where}.{name}", moving=family in plugins.MOVING
        )
        if problems:
            raise RecipeErrors(problems)
    return SimpleNamespace(**{plugins.FUNCTIONS[family]: function})


def _import(name: str, path: str) -> Any:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"{module_name} cannot be imported: {error}.",
            fix="Install the package, or add its folder to PYTHONPATH.",
            path=path,
            value=name,
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RecipeError(
            f"{module_name} has no function {function_name}"
            f"{plugins.did_you_mean(function_name, dir(module))}",
            fix="The name after the colon is a function of the module.",
            path=path,
            value=name,
        )
    return function


def _signature(name: str, function: Any) -> plugins.Signature:
    options = tuple(
        plugins.Option(
            name=parameter.name,
            annotation=_annotation(parameter.annotation),
            required=parameter.default is parameter.empty,
            default=None if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    )
    return plugins.Signature(name, inspect.getdoc(function) or "", options)


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
