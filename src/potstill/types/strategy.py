"""Where the batches of a training come from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from potstill.types.batch import Batch
from potstill.types.rows import Example


class Sampler(Protocol):
    """What a strategy writes text with: the student that is trained, alone or beside its teacher.

    Attributes:
        pad_id: the id that fills up batches.
        packed: examples of a micro-batch stand end to end.
        micro_batch_tokens: most padded tokens of a micro-batch.
        seed: of the training.
        steps: optimizer steps of the training in all.
        scores: `score` adds something, because the objective reads it.
    """

    @property
    def pad_id(self) -> int: ...

    @property
    def packed(self) -> bool: ...

    @property
    def micro_batch_tokens(self) -> int: ...

    @property
    def seed(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def scores(self) -> bool: ...

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Any,
        *,
        seeds: Sequence[int],
        samples: int = 1,
        teacher_share: float = 0.0,
        proposals: int = 0,
    ) -> Sequence[Any]:
        """Complete each prompt `samples` times with the student as it is now; every process calls it.

        Args:
            sampling: settings of the text (`generate.sampling.Sampling`).
            seeds: one for each prompt; draws depend on it, the prompt's ids and the sample alone.
            teacher_share: of the teacher in the mixture of both distributions that is drawn from.
            proposals: the student's token is kept where it is among so many likeliest of the teacher, which
                draws another one otherwise (speculative distillation); 0 is off.

        Returns:
            completions (`generate.request.Completion`), in the order of prompts and samples.
        """

    def score(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Add what student and teacher say of the tokens, where the objective reads it; all processes call it."""


class Strategy(Protocol):
    """The seam between the trainer and where its batches come from.

    `batches` turns the micro-batches of one optimizer step into what is trained on; a strategy may
    replace completions (by the student's own, say), and knows neither the teacher nor the loss. No batch at all
    says that it collects rows of several steps; once it `holds` steps of its own, it is given no rows.

    `observe` is told the means of a step, `validated` those of a validation; `figures` says what is to be logged
    of the last step. `rollouts` names the rows whose teacher's signals may be needed again. A class that derives
    from this one writes what it needs of these; the others do nothing.
    """

    def batches(self, sampler: Sampler, examples: Sequence[Sequence[Example]]) -> Iterator[Batch]: ...

    def holds(self) -> bool:
        return False

    def rollouts(self) -> Collection[str]:
        return ()

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        return None

    def observe(self, metrics: Mapping[str, float]) -> None:
        return None

    def validated(self, metrics: Mapping[str, float]) -> None:
        return None

    def figures(self) -> Mapping[str, float]:
        return {}
