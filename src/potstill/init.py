"""A commented recipe to start from."""

from __future__ import annotations

from pathlib import Path

from potstill.artifacts import write_text
from potstill.errors import RecipeError

TEXT = """\
# A potstill recipe. `potstill check {name}` reads it and proves what a run relies on; `potstill run {name}`
# runs it. Everything that is not written here has a default, which `check` prints with its source.
version: 1
name: {stem}
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
        RecipeError: the file exists already, or its place cannot be written.
    """
    if path.exists():
        raise RecipeError(f"{path} exists already.", fix="Name another file.")
    try:
        write_text(
            path, TEXT.format(name=path, stem=path.stem, teacher=teacher, student=student, train=train)
        )
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be written: {error.strerror}.", fix="Name another place."
        ) from error
    return path
