"""Write a commented recipe to start from."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import yaml

from potstill.errors import RecipeError
from potstill.recipe.recipe import name_of
from potstill.recipe.yaml import load_value
from potstill.store.artifacts import write_text

TEXT = """\
# A potstill recipe. `potstill check {file}` reads it and proves what a run relies on; `potstill run {file}`
# runs it. Everything that is not written here has a default, which `check` prints with its source.
version: 1
name: {name}
seed: 0

# A hub id, a folder, a .gguf file, or package:NAME/FILE.gguf inside an installed package.
teacher: {{model: {teacher}}}

# A smaller model with the same tokenizer ...
student: {{model: {student}}}
# ... or the teacher itself, cut in depth:
# student: {{from_teacher: {{keep_layers: 20, by: block_influence}}}}

# Rows as {{"prompt": ...}}, {{"prompt": ..., "response": ...}} or {{"messages": [...]}}: jsonl, json, csv, parquet
# or arrow. Without `heldout`, a tenth of the prompts (60 to 500 rows) is held out before anything is generated.
data:
  train: {train}
  # heldout: heldout.jsonl
  # on_bad_row: skip          # count rows that cannot be used instead of stopping

stages:
  # The teacher answers every prompt. Leave this stage out when the rows hold answers already.
  - generate: {{max_new_tokens: 256, sampling_temperature: 0.7}}
  # The student learns the teacher's distribution on those answers. forward_kl covers all that the teacher
  # does; reverse_kl keeps to what it does most. `auto` settings suit machine, student and data.
  # Options move as schedules do: {{taid: {{t: {{linear: {{from: 0.4, to: 1}}}}}}}}. `potstill schema` lists the rest,
  # among them packing, token_weights, best_by and patience.
  - distill: {{divergence: forward_kl, learning_rate: auto}}
  # The same student, rows and budget without the teacher's distribution: what distillation adds.
  # - control: {{method: sft}}
  - evaluate: {{metrics: [likelihood, agreement, rouge_l]}}
"""


def write_recipe(path: Path, *, teacher: str, student: str, train: str) -> Path:
    """Write a commented recipe.

    Raises:
        RecipeError: the file exists already, its place cannot be written, or no recipe can hold a value.
    """
    if path.exists():
        raise RecipeError(f"{path} exists already.", fix="Name another file.")
    for option, value in (("teacher", teacher), ("student", student), ("train", train)):
        _require_text(option, value)
    try:
        write_text(
            path,
            TEXT.format(
                file=_in_a_comment(path),
                name=_scalar(name_of(path)),
                teacher=_scalar(teacher),
                student=_scalar(student),
                train=_scalar(train),
            ),
        )
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be written: {error.strerror}.", fix="Name another place."
        ) from error
    return path


def _require_text(option: str, value: str) -> None:
    if not value:
        raise RecipeError("is empty.", fix="Name a model or a file.", path=option)
    if re.search("[\ud800-\udfff]", value):
        raise RecipeError(
            f"{value!r} is not UTF-8 text, as a recipe is.", fix="Give it another name.", path=option
        )


def _scalar(text: str) -> str:
    """The text as YAML; without quotes only where it reads back as itself, also inside braces."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", text) and load_value(text, "") == text:
        return text
    return yaml.dump(text, default_style='"', allow_unicode=True, width=sys.maxsize).strip()


def _in_a_comment(path: Path) -> str:
    """The path as a shell takes it; RECIPE where it does not fit on one line."""
    return shlex.quote(str(path)) if str(path).isprintable() else "RECIPE"
