"""What the source of a plug-in says of itself, read by `ast`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.recipe.options import Option, literal, meanings_in, read_options


@dataclass(frozen=True)
class Family:
    """A kind of plug-in: one in words, and the public functions of which a file defines one to be a plug-in."""

    singular: str
    functions: tuple[str, ...]
    moving: bool = False  # its numbers may move over a stage, as a temperature does
    judges: bool = False  # what is stored, in moments: its own source is part of the result's key, too


FAMILIES: Mapping[str, Family] = {
    "divergences": Family("divergence", ("value", "value_and_partial"), moving=True),
    "evaluate": Family("metric", ("measure",), judges=True),
    "filters": Family("filter", ("problems",), judges=True),
    "generate": Family("text engine", ("write",)),
    "rewards": Family("reward", ("reward",)),  # all of them from outside
    "strategies": Family("strategy", ("build",)),
    "students": Family("student", ("build",)),
    "teachers": Family("teacher", ("build",)),
    "trackers": Family("tracker", ("start",)),
    "token_weights": Family("token weight", ("weights",)),
    "verifiers": Family("verifier", ("score",), judges=True),
}


@dataclass(frozen=True)
class Signature:
    """What a plug-in's source states: its purpose, its options in order with what they mean, and its file's UPPERCASE
    literals."""

    name: str
    purpose: str
    options: tuple[Option, ...]
    constants: Mapping[str, Any]
    file: Path
    meanings: Mapping[str, str]


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def signature_of(
    family: str, name: str, function: ast.FunctionDef, tree: ast.Module, file: Path
) -> Signature:
    purpose = ast.get_docstring(tree) or ast.get_docstring(function) or ""
    options = read_options(function.args, moving=FAMILIES[family].moving)
    meanings = dict(meanings_in(ast.get_docstring(function) or ""))
    return Signature(name, purpose.partition("\n")[0], options, dict(_constants(tree)), file, meanings)


def _constants(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        value = literal(node.value)
        if isinstance(target, ast.Name) and target.id.isupper() and value is not None:
            yield target.id, value
