"""From a recipe to its parts: models found, tokenizers read, rows split. Loads no weights.

`check` and `run` both start here, so what the preflight reads is what the run reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from potstill.data.template import Templater
from potstill.errors import RecipeError
from potstill.models import loading
from potstill.models.vocabulary import (
    Vocabulary,
    first_conflict,
    read_vocabulary,
    require_same,
    special_differences,
)
from potstill.recipe.defaults import Facts, expand
from potstill.recipe.inputs import Cut, DataSpec, ModelSpec
from potstill.recipe.recipe import Recipe, read_recipe, resolve_path
from potstill.runs.rows import Data, finetuning, read_data, weights_of
from potstill.stages.common import ModelRef
from potstill.store.folder import RECIPE, RunDir

LONGEST = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Opened:
    """A recipe with the folder that its paths start from."""

    recipe: Recipe
    base: Path
    method: str | None = None  # the preset that the stages came from


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of, before any weight is loaded."""

    opened: Opened
    device: torch.device
    teacher: ModelRef
    student: ModelRef | None  # None: cut from the teacher
    vocabulary: Vocabulary
    teacher_vocabulary: Vocabulary
    teacher_templater: Templater
    student_templater: Templater
    tokenizer: Any  # the student's
    pad_id: int
    teacher_pad_id: int
    template: str | None  # the chat template, where it is not the student's own
    max_length: int
    context: int
    layers: int
    data: Data
    notes: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        return self.opened.recipe

    @cached_property
    def shared_vocabulary(self) -> bool:
        """Whether an id means the same to teacher and student."""
        return first_conflict(self.teacher_vocabulary, self.vocabulary) is None

    @cached_property
    def reads_alike(self) -> bool:
        """Whether teacher and student read the same row as the same ids."""
        same = self.teacher_templater.fingerprint == self.student_templater.fingerprint
        return self.shared_vocabulary and same


def open_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Opened:
    """Read a recipe, or the one that a run folder holds.

    Raises:
        RecipeError: it cannot be read, or something in it is wrong.
    """
    path = Path(path)
    if not path.is_dir():
        written = read_recipe(path, overrides)
        return Opened(expand(written), path.resolve().parent, written.method)
    if not (path / RECIPE).is_file():
        raise RecipeError(
            f"{path} is a folder without a {RECIPE}.", fix="Name a recipe file or a run folder."
        )
    base = RunDir(path).state().get("base", str(path.resolve()))
    recipe = expand(read_recipe(path / RECIPE, overrides))
    return Opened(recipe.model_copy(update={"runs": str(path.resolve().parent)}), Path(base))


def compose(opened: Opened) -> Parts:
    """Find models, read tokenizers, configs and rows, and refuse what cannot work together.

    Raises:
        ModelError, VocabularyError, DataError: naming what does not fit and the way out.
    """
    recipe, base = opened.recipe, opened.base
    device = loading.best_device()
    teacher = _reference(recipe.teacher, base, device)
    config = loading.load_config(teacher.source).get_text_config()
    tokenizer = teacher_tokenizer = loading.load_tokenizer(teacher.source)
    teacher_vocabulary = read_vocabulary(tokenizer)
    template = _template_text(recipe.data, base)
    teacher_templater = _templater(tokenizer, template, recipe.data)
    student, student_templater, vocabulary = None, teacher_templater, teacher_vocabulary
    context = int(getattr(config, "max_position_embeddings", LONGEST))
    notes: list[str] = []
    if recipe.student.model is not None:
        spec = ModelSpec(**recipe.student.model_dump(exclude={"from_teacher"}))
        student = _reference(spec, base, torch.device("cpu"))
        own_config = loading.load_config(student.source).get_text_config()
        own = loading.load_tokenizer(student.source)
        vocabulary = read_vocabulary(own)
        if any(stage.verb == "distill" for stage in recipe.stages):
            require_same(teacher_vocabulary, vocabulary)
        notes += [
            f"special ids differ: {text}" for text in special_differences(teacher_vocabulary, vocabulary)
        ]
        if template is None and not own.chat_template:
            template = tokenizer.chat_template
            notes.append("the student has no chat template; it learns the teacher's.")
        student_templater = _templater(own, template, recipe.data)
        context = min(context, int(getattr(own_config, "max_position_embeddings", LONGEST)))
        tokenizer = own
    if teacher_templater.fingerprint != student_templater.fingerprint:
        notes.append("the chat templates of teacher and student differ; each reads a row through its own.")
    owners = {"the": student_templater, "the teacher's": teacher_templater}
    for owner, added in {o: t.default_system for o, t in owners.items() if t.default_system}.items():
        if owner == "the" or added != student_templater.default_system:
            notes.append(
                f"{owner} chat template adds a system prompt of its own to rows without one: {added!r}."
            )
    limit = recipe.data.max_length
    if limit != "auto" and limit > context:
        notes.append(f"data.max_length is {limit}, the models read {context} tokens; that is the limit.")
    data = read_data(recipe.data, base, recipe.seed)
    data = replace(data, finetune=finetuning(recipe, base, data.heldout, notes))
    if recipe.data.weight is not None:
        weights_of(data.trained_on, recipe.data.weight)
    layers = int(config.num_hidden_layers)
    _require_layers(recipe.student.from_teacher, layers)
    seen = {row.prompt_text for row in data.train + data.validation}
    if both := sum(row.prompt_text in seen for row in data.heldout):
        notes.append(
            f"{both} of {len(data.heldout)} held-out prompts are training prompts too; figures on them "
            "measure memory. Take them out of one of the two."
        )
    return Parts(
        opened=opened,
        device=device,
        teacher=teacher,
        student=student,
        vocabulary=vocabulary,
        teacher_vocabulary=teacher_vocabulary,
        teacher_templater=teacher_templater,
        student_templater=student_templater,
        tokenizer=tokenizer,
        pad_id=_pad_id(tokenizer),
        teacher_pad_id=_pad_id(teacher_tokenizer),
        template=template,
        max_length=min(context, LONGEST) if limit == "auto" else min(context, limit),
        context=context,
        layers=layers,
        data=data,
        notes=tuple(notes),
    )


def _require_layers(cut: Cut | None, layers: int) -> None:
    if cut is None:
        return
    most = cut.count if isinstance(cut.by, str) else max(cut.by) + 1
    if most > layers:
        raise RecipeError(
            f"needs {most} layers, the teacher has {layers}.",
            path="student.from_teacher",
            fix=f"Keep 1 to {layers} layers, counted from 0.",
        )


def _pad_id(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(pad if pad is not None else 0)


def facts(
    parts: Parts,
    train_tokens: int | None,
    parameters: int | None,
    answer_tokens: int | None,
    untrained: bool = True,
) -> Facts:
    """What `auto` values may depend on; `untrained` says that no stage has trained the student yet."""
    kind = parts.device.type
    return Facts(
        device=kind if kind in ("cuda", "mps") else "cpu",  # type: ignore[arg-type]
        bf16=loading.fast_bf16(parts.device),
        fp16=kind == "cuda",
        student_kind="cut" if parts.student is None and untrained else "full",
        parameters=parameters,
        train_tokens=train_tokens,
        answer_tokens=answer_tokens,
        context=parts.context,
    )


def _reference(spec: ModelSpec, base: Path, device: torch.device) -> ModelRef:
    source = loading.find_source(
        spec.model, base=base, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )
    if spec.dtype != "auto":
        dtype = DTYPES[spec.dtype]
    elif loading.fast_bf16(device):
        dtype = torch.bfloat16
    else:
        dtype = torch.float16 if device.type == "cuda" else torch.float32
    return ModelRef(source, loading.fingerprint(source), dtype)


def _template_text(spec: DataSpec, base: Path) -> str | None:
    if spec.template is None or spec.template.file is None:
        return None
    path = resolve_path(base, spec.template.file)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read {path}: {error}.", path="data.template.file", fix="Check the path."
        ) from error


def _templater(tokenizer: Any, template: str | None, spec: DataSpec) -> Templater:
    return Templater(
        tokenizer,
        template_text=template,
        template_kwargs=dict(spec.template.kwargs) if spec.template else None,
        system=spec.system,
        reasoning=spec.reasoning,
    )
