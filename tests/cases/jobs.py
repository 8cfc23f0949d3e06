"""Training jobs without a recipe: students and teachers made in memory, and what is known of them beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from potstill.console import Console
from potstill.divergences import forward_kl
from potstill.models import loading, vocabulary
from potstill.objectives.token import Divergence, TokenLoss
from potstill.stages.common import World
from potstill.stages.train import Job
from potstill.store.artifacts import Artifact, Store
from potstill.strategies.offline import Offline
from potstill.train.loop import Settings
from potstill.types import Example
from tiny import EOS, PAD, tiny_model, tiny_tokenizer

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


@dataclass(frozen=True)
class Memory:
    """A teacher that is not on disk."""

    model: Any
    fingerprint: str = "memory"
    dtype: torch.dtype = torch.float32

    def load(self, device: torch.device) -> loading.Loaded:
        tokenizer = tiny_tokenizer()
        source = loading.Source("folder", "memory")
        return loading.Loaded(self.model, tokenizer, vocabulary.read_vocabulary(tokenizer), source)


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


def world(folder: Path, stop_signal: Callable[[], int] = lambda: 0) -> World:
    return World(Store(folder / "store"), Console(quiet=True), torch.device("cpu"), 0, stop_signal)


def job(start: Artifact, teacher: Any, examples: Sequence[Example], **changes: Any) -> Job:
    """Forward KL at T = 1, two steps of all rows at learning rate 0, unless `changes` says otherwise."""
    loss = changes.pop("loss", TokenLoss(FORWARD))
    names = Settings.__dataclass_fields__
    given = {name: changes.pop(name) for name in list(changes) if name in names}
    settings: dict[str, Any] = {
        "steps": 2, "learning_rate": 0.0, "tokens_per_step": 10**6, "micro_batch_tokens": 512
    } | given  # fmt: skip
    whole = Job(
        name="distill",
        student=start,
        teacher=teacher,
        examples=examples,
        validation=examples,
        vocabulary=128,
        pad_id=PAD,
        stop_ids=(EOS,),
        strategy=Offline(),
        loss_at=lambda step: loss,
        loss_facts={},
        yardstick=TokenLoss(FORWARD),
        settings=Settings(**settings),
        autocast=None,
        chunk_bytes=2**20,
        activation_checkpointing=False,
        data_key="rows",
    )
    return replace(whole, **changes)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What a training stage logged."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]
