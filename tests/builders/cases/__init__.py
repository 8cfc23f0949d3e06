"""What enters and what is kept, mutated by seed; each case is drawn by its number."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from builders.cases.files import data_case
from builders.cases.models import gguf_case, model_case
from builders.cases.place import Case
from builders.cases.recipes import number_case, recipe_case
from builders.cases.runs import run_case
from builders.cases.templates import template_case

KINDS: dict[str, Callable[[Path, random.Random], Case]] = {
    "recipe": recipe_case, "data": data_case, "model": model_case, "template": template_case, "run": run_case,
    "gguf": gguf_case, "number": number_case,
}  # fmt: skip
