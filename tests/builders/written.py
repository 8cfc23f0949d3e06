"""Samplers that write what a test says, and trainings in which the student writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from builders.jobs import Memory, events, student, trained
from builders.tiny import EOS, tiny_model
from potstill.generate.request import Completion
from potstill.recipe.specs import StrategyChoice
from potstill.store.artifacts import Artifact
from potstill.types import Example


@dataclass
class Scripted:
    """A sampler whose text is `text(prompt, seed, sample)`; it keeps what it was asked."""

    text: Callable[[Sequence[int], int, int], Sequence[int]] = lambda prompt, seed, sample: (9, EOS)
    pad_id: int = 0
    packed: bool = False
    micro_batch_tokens: int = 40
    seed: int = 0
    steps: int = 10
    scores: bool = False
    asked: list[tuple[int, ...]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def write(
        self, prompts: Sequence[Sequence[int]], sampling: Any, *, seeds: Any, samples: int = 1, **how: Any
    ) -> list[Completion]:
        self.asked += map(tuple, prompts)
        self.seeds += seeds
        written = []
        for index, prompt in enumerate(prompts):
            for sample in range(samples):
                ids = tuple(self.text(prompt, seeds[index], sample))[: sampling.max_new_tokens]
                written.append(Completion(index, sample, ids, "stop" if ids[-1] == EOS else "length"))
        return written

    def score(self, examples: Sequence[Example]) -> Sequence[Example]:
        if not self.scores:
            return examples
        zeros = [(0.0,) * example.count for example in examples]
        return [replace(e, student_lp=z, teacher_lp=z) for e, z in zip(examples, zeros, strict=True)]


def rows(count: int = 6, answer: int = 5) -> list[Example]:
    """Rows with prompts of three ids and answers of as many as `answer`."""
    ids = torch.randint(4, 128, (count, 3 + answer), generator=torch.Generator().manual_seed(0)).tolist()
    return [Example(f"r{i}", tuple(row), (False,) * 3 + (True,) * answer) for i, row in enumerate(ids)]


def on_policy(
    folder: Path,
    examples: Sequence[Example] | None = None,
    strategy: dict[str, Any] | None = None,
    **options: Any,
) -> Artifact:
    """A distill stage of six steps of two rows in which the student writes up to eight tokens."""
    start = student(folder / "s", options.pop("model", None) or tiny_model())
    teacher = options.pop("teacher", None) or Memory(tiny_model(seed=1))
    choice = StrategyChoice(name="on_policy", options={"max_new_tokens": 8} | (strategy or {}))
    settings = {"steps": 6, "learning_rate": 1e-3, "tokens_per_step": 10, "strategy": choice}
    return trained(folder, start, teacher, examples or rows(), **settings | options)


def weights(made: Artifact) -> dict[str, torch.Tensor]:
    return load_file(made.path / "student/model.safetensors")


def assert_equal(one: Artifact, other: Artifact) -> None:
    """The same weights, and the same steps, bit for bit."""
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name
    left, right = (
        [
            {k: v for k, v in event.items() if k in ("step", "epoch", "loss", "grad_norm", "tokens")}
            for event in e
        ]
        for e in (events(one.path, "step"), events(other.path, "step"))
    )
    assert left == right
