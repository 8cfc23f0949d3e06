"""Write a commented recipe to start from."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from string import Template

import yaml

from potstill.errors import RecipeError
from potstill.recipe.recipe import name_of
from potstill.recipe.yaml import load_value
from potstill.store.disk import write_text

STARTER = Path(__file__).with_name("starter.yaml")


def write_recipe(path: Path, *, teacher: str, student: str, train: str) -> Path:
    """Write a commented recipe.

    Raises:
        RecipeError: the file exists already, its place cannot be written, or no recipe can hold a value.
    """
    if path.exists():
        raise RecipeError(f"{path} exists already.", fix="Name another file.")
    values = {"teacher": teacher, "student": student, "train": train}
    for option, value in values.items():
        if not value:
            raise RecipeError("is empty.", fix="Name a model or a file.", path=option)
        if re.search("[\ud800-\udfff]", value):
            message = f"{value!r} is not UTF-8 text, as a recipe is."
            raise RecipeError(message, fix="Give it another name.", path=option)
    values["name"] = name_of(path)
    scalars = {key: _scalar(value) for key, value in values.items()}
    # The path stands in a comment: as a shell takes it, where it fits on one line.
    file = shlex.quote(str(path)) if str(path).isprintable() else "RECIPE"
    try:
        write_text(path, Template(STARTER.read_text(encoding="utf-8")).substitute(scalars, file=file))
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be written: {error.strerror}.", fix="Name another place."
        ) from error
    return path


def _scalar(text: str) -> str:
    """The text as YAML; without quotes only where it reads back as itself, also inside braces."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text) and load_value(text, "") == text:
        return text
    return yaml.dump(text, default_style='"', allow_unicode=True, width=sys.maxsize).strip()
