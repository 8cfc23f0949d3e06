"""Training jobs without a recipe: students and teachers made in memory, and what is known of them beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from builders.tiny import EOS, PAD, tiny_model, tiny_tokenizer
from potstill.console import Console
from potstill.data.dataset import Dataset
from potstill.data.reader import Reader, Readers
from potstill.data.template import Templater
from potstill.divergences import forward_kl
from potstill.models import loading, vocabulary
from potstill.objectives.token import Divergence
from potstill.recipe.training import Training
from potstill.stages import _train
from potstill.stages._context import Context, Setup, State, StudentRef
from potstill.stages._training_rows import TrainingRows
from potstill.stages.distill import Distill
from potstill.store.artifacts import Artifact, Store
from potstill.teachers.local import LocalTeacher
from potstill.types import Batch, Example

FORWARD = Divergence.from_module(forward_kl)
NEVER = -1e4  # a logit that leaves an id no probability
TEACHER, STUDENT = {2: 2.0, 3: 1.0, 4: 0.0}, {2: 1.0, 3: 1.0, 4: 1.0}  # KL(teacher‖student) = 0.266217


def saying(logits: dict[int, float]) -> LlamaForCausalLM:
    """A model with the same logits at every position: these, and `NEVER` for every other id."""
    model = tiny_model(layers=1)
    with torch.no_grad():
        block = model.model.layers[0]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        width = model.config.hidden_size
        model.lm_head.weight.fill_(NEVER / width)
        for token, logit in logits.items():
            model.lm_head.weight[token] = logit / width
    return model


class Memory:
    """A teacher that is not on disk."""

    name = "memory"
    provides = frozenset({"dense", "text"})
    reads: Any = None
    dtype = torch.float32
    batch_invariant = True

    def __init__(self, model: Any, fingerprint: str = "memory") -> None:
        self.fingerprint = fingerprint
        self._model = model

    def loaded(self) -> loading.Loaded:
        return loading.Loaded(self._model, tiny_tokenizer())

    def signal(self, batch: Batch) -> Any:
        return LocalTeacher(self._model, vocabulary=128, fingerprint="memory").signal(batch)

    def close(self) -> None:
        return None


def student(folder: Path, model: Any, tokenizer: Any = None) -> Artifact:
    """`model` as an earlier stage leaves a student."""
    loading.save(model, tokenizer or tiny_tokenizer(), folder / "student")
    return Artifact(folder, {"key": folder.name, "facts": {"params": 1, "bytes": 4}})


def answers(*lengths: int, prompt: int = 3) -> list[Example]:
    """Rows whose answers have these many tokens, all of them the end token."""
    return [
        Example(f"r{i}", (*range(10, 10 + prompt), *[EOS] * n), (False,) * prompt + (True,) * n)
        for i, n in enumerate(lengths)
    ]


@dataclass(frozen=True)
class EndsWith(Reader):
    """A reader whose answers end with these ids."""

    ends: tuple[int, ...] = (EOS,)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.ends


def context(
    folder: Path, teacher: Any, stop: Callable[[], int] = lambda: 0, stop_ids: tuple[int, ...] = (EOS,)
) -> Context:
    """Where a stage works whose rows are handed to it."""
    tokenizer = tiny_tokenizer()
    known = vocabulary.read_vocabulary(tokenizer)
    reader = EndsWith(tokenizer, Templater(tokenizer), known, PAD, stop_ids)
    setup = Setup(
        device=torch.device("cpu"),
        base=folder,
        teacher=teacher,
        student=StudentRef(None, "", {}, None, cut=False, template=None),  # type: ignore[arg-type]
        readers=Readers(reader, reader),
        data=Dataset((), (), (), "", {}, ""),
        weight=None,
        on_bad_row="error",
        max_length=256,
        context_length=256,
    )
    return Context(setup, Store(folder / "store"), Console(quiet=True), seed=0, stop_signal=stop)


def trained(
    folder: Path,
    start: Artifact,
    teacher: Any,
    examples: Sequence[Example],
    *,
    validation: Sequence[Example] | None = None,
    stop: Callable[[], int] = lambda: 0,
    stop_ids: tuple[int, ...] = (EOS,),
    **options: Any,
) -> Artifact:
    """A distill stage on these rows: forward KL at T = 1, two steps of all rows at learning rate 0, unless
    `options` say otherwise."""
    spec = spec_of(Distill, **options)
    rows = TrainingRows(tuple(examples), tuple(examples if validation is None else validation))
    where = context(folder, teacher, stop, stop_ids)
    return _train.train_student(spec, State(student=start), rows, where, teacher=teacher)


def spec_of(kind: Any = Training, **options: Any) -> Any:
    """The resolved options of a training stage; values that no recipe may hold, as a rate of 0, are taken."""
    quiet = {
        "steps": 2, "learning_rate": 0.0, "tokens_per_step": 10**6, "micro_batch_tokens": 512,
        "validate_every": 0, "checkpoint_every": 0, "precision": "float32", "export_dtype": "float32",
    }  # fmt: skip
    if "chunk_bytes" in kind.model_fields:
        quiet |= {"chunk_bytes": 2**20, "best_by": "loss", "compile": False}
    return kind().model_copy(update=quiet | options)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What a training stage logged."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]
