"""The student writes text while it is trained: a strategy's sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from potstill.errors import RecipeError
from potstill.generate import beside
from potstill.generate.local import generate
from potstill.generate.pushed import Wanted
from potstill.generate.request import Completion
from potstill.generate.sampling import Sampling
from potstill.models.shards import is_sharded
from potstill.train import parallel
from potstill.train.pushed import Pushed, logits_behind
from potstill.types import Example


class Student(nn.Module):
    """The student inside the module that is trained, called through the hooks that gather its parts."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.trained = parallel.unwrap(module)

    @property
    def config(self) -> Any:
        return self.trained.student.config  # type: ignore[union-attr]

    def forward(self, **inputs: Any) -> Any:
        return self.trained.decode(**inputs)  # type: ignore[operator]


@dataclass(frozen=True)
class Writer:
    """The student that is trained as a writer: evaluation mode, a cache, and the number format of its training.

    Args:
        module: what is trained, wrapped or not (`train.step.StudentModule`).
        stop_ids: ids that end a completion.
        vocabulary: number of ids that may be written.
        unused: ids below it that are no token.
        teacher: returns the model of the teacher; None where its weights are not in this process.
        autocast: dtype of the student's forward passes.
        batch_rows: most completions in flight.
        scored: adds what both models say of drawn tokens; None where the objective does not read it.
        pushed: an engine that writes with the student's weights; None where the student does so itself.
    """

    module: nn.Module
    pad_id: int
    packed: bool
    micro_batch_tokens: int
    seed: int
    steps: int
    stop_ids: Sequence[int]
    vocabulary: int
    unused: Sequence[int] = ()
    teacher: Callable[[], Any] | None = None
    autocast: torch.dtype | None = None
    batch_rows: int = 32
    scored: Callable[[Sequence[Example]], Sequence[Example]] | None = None
    pushed: Pushed | None = None

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples: int = 1,
        teacher_share: float = 0.0,
        proposals: int = 0,
    ) -> list[Completion]:
        """Complete the prompts; `types.Sampler` describes the arguments.

        Raises:
            RecipeError: the teacher is to write too, and its weights are not here.
        """
        device = next(self.module.parameters()).device
        if self.pushed is not None:
            return self._by_engine(self.pushed, prompts, sampling, seeds, samples)
        # Weights are cast once for the whole text: autocast's cache ends with the outermost context. Of a student
        # in parts it would keep all of them.
        cache = not is_sharded(self.module)
        with torch.autocast(
            device.type, dtype=self.autocast, enabled=self.autocast is not None, cache_enabled=cache
        ):
            finished = list(
                generate(
                    self._model(sampling, teacher_share, proposals),
                    prompts,
                    sampling,
                    stop_ids=self.stop_ids,
                    pad_id=self.pad_id,
                    seed=seeds,
                    batch_rows=self.batch_rows,
                    vocabulary=self.vocabulary,
                    unused=self.unused,
                    samples=samples,
                )
            )
        return sorted(finished, key=lambda completion: (completion.index, completion.sample))

    def _by_engine(
        self,
        pushed: Pushed,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seeds: Sequence[int],
        samples: int,
    ) -> list[Completion]:
        student = Student(self.module)
        device = next(self.module.parameters()).device

        def logits(prompt: Sequence[int]) -> torch.Tensor:
            with torch.autocast(device.type, dtype=self.autocast, enabled=self.autocast is not None):
                return logits_behind(student, prompt, device)

        width = int(student.config.get_text_config().vocab_size)
        wanted = Wanted(prompts, sampling, seeds, samples, self.stop_ids, self.vocabulary, width, self.unused)
        return pushed.write(self.module, wanted, logits)

    def stepped(self) -> None:
        """Take note of an optimizer step: the student is another one from now on."""
        if self.pushed is not None:
            self.pushed.stepped()

    def close(self) -> None:
        """Let go of an engine."""
        if self.pushed is not None:
            self.pushed.close()

    def _model(self, sampling: Sampling, teacher_share: float, proposals: int) -> nn.Module:
        """The student, with its teacher beside it where both write."""
        student = Student(self.module)
        if not (teacher_share or proposals):
            return student
        name = "proposals" if proposals else "teacher_share"
        if self.teacher is None:
            raise RecipeError(
                "the teacher cannot write beside the student: its weights are not in this process.",
                fix=f"Use a teacher that is loaded here, or leave {name} out.",
                path=f"strategy.on_policy.{name}",
            )
        combine = (
            partial(beside.proposals, top_k=proposals)
            if proposals
            else partial(beside.mixture, share=teacher_share)
        )
        return beside.Beside(
            student,
            self.teacher(),
            combine,
            vocabulary=self.vocabulary,
            unused=tuple(self.unused),
            temperature=sampling.temperature,
        )

    def score(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Add `student_lp` and `teacher_lp`, where the objective reads them."""
        return examples if self.scored is None else self.scored(examples)

    @property
    def scores(self) -> bool:
        """Whether `score` adds something."""
        return self.scored is not None
