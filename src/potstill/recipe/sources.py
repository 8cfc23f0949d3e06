"""The source of a plug-in as one hash: its file, and the modules beside it that it imports, however far down."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SHARED = ("site-packages", "dist-packages")  # folders in which modules have nothing to do with each other


def source_hash(module: str, file: Path) -> str:
    """SHA-256 of the file of `module` and of all that it imports from its own package or, outside of one, from the
    folder that it lies in. What is installed beside it, or comes with Python, is not read.
    """
    depth = module.count(".") + (file.name == "__init__.py")
    root = file.resolve().parents[depth]
    top = module.partition(".")[0]
    alone = "." in module or root.name in _SHARED
    found: dict[str, Path] = {}
    waiting = [(module, file.resolve())]
    while waiting:
        name, place = waiting.pop()
        if name in found:
            continue
        found[name] = place
        package = name if place.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(place, package, place.stat().st_mtime_ns):
            if (imported.partition(".")[0] == top or not alone) and (other := _file_of(root, imported)):
                waiting.append((imported, other))
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(found[name].read_bytes()).digest())
    return digest.hexdigest()


def _file_of(root: Path, module: str) -> Path | None:
    """Where a module's source lies below a folder; None where it does not."""
    place = root.joinpath(*module.split("."))
    files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


@cache
def _imports(file: Path, package: str, _changed: int) -> tuple[str, ...]:
    """Every name that a file may import as a module, wherever in it."""
    return tuple(dict.fromkeys(_names(ast.parse(file.read_bytes(), filename=str(file)), package)))


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
