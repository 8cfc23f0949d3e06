"""The values that flow through potstill. Frozen; shapes are in the comments.

Legend: B rows, S positions, N scored positions of a batch, V vocabulary, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from potstill.errors import SignalError

Origin = Literal["data", "teacher", "student"]


@dataclass(frozen=True)
class Reading:
    """The same row as another model reads it. `scored[i]` says that token i is a target."""

    input_ids: tuple[int, ...]
    scored: tuple[bool, ...]

    @property
    def prompt(self) -> tuple[int, ...]:
        """What precedes its last answer; all of it without one."""
        return self.input_ids[: last_run(self.scored)]


@dataclass(frozen=True)
class Example:
    """One row as token ids. `scored[i]` says that token i is a target (never true at i = 0)."""

    id: str
    input_ids: tuple[int, ...]
    scored: tuple[bool, ...]
    origin: Origin = "data"
    weight: float = 1.0  # of each of its tokens' loss
    part_of: str | None = None  # the row it is a part of, where a row gives several examples
    answers: str | None = None  # the example whose prompt it answers, where the student wrote it
    share: float = 1.0  # of its conversation's scored tokens, where a template makes turns examples
    reading: Reading | None = None  # the teacher's, where it reads the row as other ids
    version: int | None = None  # optimizer steps that the student had behind it when it wrote the row
    student_lp: tuple[float, ...] | None = None  # of the scored tokens when they were drawn, at T = 1
    teacher_lp: tuple[float, ...] | None = None
    truncated: bool = False  # the student wrote as many tokens as it may, and no end token
    room: int = 0  # tokens that the student may write behind a prompt without an answer; 0 for any other row
    domain: str | None = None  # which of several teachers are asked about it, where a recipe routes rows

    @property
    def row_id(self) -> str:
        """The source row: `id` alone cannot tell sample 1 of row "a" from a row named "a#1"."""
        return self.id if self.part_of is None else self.part_of

    @property
    def asked_by(self) -> str:
        """The example whose prompt it answers: a row may give several, each a turn of its own."""
        return self.id if self.answers is None else self.answers

    @property
    def count(self) -> int:
        """Count the scored tokens."""
        return sum(self.scored)

    @property
    def width(self) -> int:
        """Count its tokens, or those of the teacher's reading where these are more."""
        return max(len(self.input_ids), 0 if self.reading is None else len(self.reading.input_ids))

    @property
    def planned(self) -> tuple[int, int]:
        """All tokens and the scored ones, with an answer of full length where the student is to write it."""
        return self.width + self.room, self.count + self.room

    @property
    def prompt(self) -> tuple[int, ...]:
        """What precedes its last answer, the last run of scored tokens; all of a row without one."""
        return self.input_ids[: last_run(self.scored)]

    def silent(self) -> Example:
        """The same row with nothing scored: a process without rows of its own still works beside the others."""
        reading = self.reading and replace(self.reading, scored=(False,) * len(self.reading.scored))
        nothing = (False,) * len(self.scored)
        return replace(self, scored=nothing, reading=reading, student_lp=None, teacher_lp=None, room=0)


def last_run(scored: Sequence[bool]) -> int:
    """Where the last run of scored tokens begins; the length where none is scored."""
    end = next((i for i in range(len(scored), 0, -1) if scored[i - 1]), None)
    if end is None:
        return len(scored)
    return next((i for i in range(end, 0, -1) if not scored[i - 1]), 0)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. Masks come from lengths, never from ids.

    `predicts[b, i]` says that the logits at position i are scored, against token i + 1.
    This shift is made once, in `data.batch`, for student, teacher and labels alike.
    """

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64
    predicts: Tensor  # [B, S] bool
    targets: Tensor  # [N] int64, row-major order of `predicts`
    row_ids: tuple[str, ...]
    hard: Tensor  # [N] bool: the token was written by data or teacher, so cross-entropy may use it
    weights: Tensor | None = None  # [N] float32: weight of each token's loss, 1 when absent
    student_lp: Tensor | None = None  # [N] float32, when the tokens were drawn; NaN where nobody asked
    teacher_lp: Tensor | None = None  # [N] float32, beside it
    packed: bool = False  # examples stand end to end; position_ids restart at 0 where one begins
    teacher: Batch | None = None  # the same rows and scored tokens as the teacher reads them
    asked_by: tuple[str, ...] = ()  # the example whose prompt each row answers
    domains: tuple[str | None, ...] = ()  # of each row, which of several teachers are asked about it

    @property
    def count(self) -> int:
        """N, the number of scored positions."""
        return int(self.targets.numel())

    @property
    def for_teacher(self) -> Batch:
        """The batch that a teacher is given: its own reading, or this one."""
        return self if self.teacher is None else self.teacher

    def example_counts(self) -> Tensor:
        """Count the scored tokens of each scored token's example, [N]."""
        _, owner, counts = torch.unique_consecutive(self.owners(), return_inverse=True, return_counts=True)
        return counts[owner]

    def owners(self) -> Tensor:
        """Index the example that each scored token belongs to, [N]; it counts rows, or packed examples."""
        row, place = self.predicts.nonzero(as_tuple=True)
        return ((self.position_ids[0] == 0).cumsum(0) - 1)[place] if self.packed else row

    def only(self, kept: Tensor) -> Batch:
        """The same rows with fewer scored tokens: those of `kept` [N] bool."""
        predicts = self.predicts.clone()
        predicts[self.predicts] = kept
        return replace(self, predicts=predicts, **self._of_tokens(kept))

    def rows(self, kept: Tensor) -> Batch:
        """The batch without some of its rows, or packed examples: those of `kept` [R] bool stay."""
        if self.packed:
            columns = kept[(self.position_ids[0] == 0).cumsum(0) - 1]
            part: tuple[Any, ...] = (slice(None), columns)
        else:
            longest = int(self.attention_mask[kept].sum(1).max()) if bool(kept.any()) else 0
            part = (kept, slice(0, longest))
        per_place = ("input_ids", "attention_mask", "position_ids", "predicts")
        per_row: dict[str, Any] = {
            name: tuple(
                value for value, stays in zip(getattr(self, name), kept.tolist(), strict=True) if stays
            )
            for name in ("row_ids", "asked_by", "domains")
            if getattr(self, name)
        }
        return replace(
            self,
            **dict[str, Any]((name, getattr(self, name)[part]) for name in per_place),
            **self._of_tokens(kept[self.owners()]),
            **per_row,
            teacher=None if self.teacher is None else self.teacher.rows(kept),
        )

    def _of_tokens(self, kept: Tensor) -> dict[str, Any]:
        """What is known of each scored token, of those of `kept` [N] bool."""
        per_token = ("targets", "hard", "weights", "student_lp", "teacher_lp")
        values = {name: getattr(self, name) for name in per_token}
        return {name: value[kept] for name, value in values.items() if value is not None}

    def row_of(self, position: int) -> str:
        """The id of the row that scored position 0 .. N-1 belongs to."""
        row, place = self.predicts.nonzero()[position].tolist()
        if self.packed:
            row = int((self.position_ids[0, : place + 1] == 0).sum()) - 1
        return self.row_ids[row]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {
            name: value.to(device) if isinstance(value, Batch) else value.to(device, non_blocking=True)
            for name, value in self.__dict__.items()
            if isinstance(value, Tensor | Batch)
        }
        return Batch(**(self.__dict__ | moved))


def places_in_answers(predicts: Tensor) -> Tensor:
    """Count, for each true position of `predicts` [B, S] or [S], its place in its answer, from 0.

    An answer is a run of neighbours; none crosses rows.
    """
    index = torch.arange(predicts.shape[-1], device=predicts.device).expand(predicts.shape)
    begins = predicts.clone()
    begins[..., 1:] &= ~predicts[..., :-1]
    return (index - torch.where(begins, index, 0).cummax(-1).values)[predicts]


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits: softcap(scale * (h W' + b)).

    `vocabulary` counts the ids that the tokenizer knows; rows beyond are padding and are cut
    before the softmax. `lora` is (A [r, H], B [V, r], scaling). `module` is the model's own head,
    used as it is when its form is not known here (a quantised head).
    """

    weight: Tensor | None  # [V, H]
    vocabulary: int
    bias: Tensor | None = None  # [V]
    scale: float = 1.0
    softcap: float | None = None
    lora: tuple[Tensor, Tensor, float] | None = None
    module: torch.nn.Module | None = None

    def __post_init__(self) -> None:
        parts = {"weight": self.weight, "bias": self.bias, "LoRA": self.lora and self.lora[1]}
        for what, part in parts.items():
            if part is not None and part.shape[0] < self.vocabulary:
                raise SignalError(
                    f"the head's {what} has {part.shape[0]} rows, fewer than its vocabulary of {self.vocabulary}.",
                    fix="Count the ids that the head knows; resize the model's embeddings for added tokens.",
                )

    def cut(self, vocabulary: int) -> Head:
        """The same head for its first `vocabulary` ids; no weight is copied."""
        return replace(self, vocabulary=vocabulary)

    def to(self, device: torch.device) -> Head:
        """The head on that device; a copy of what is elsewhere."""
        weight, bias = (None if part is None else part.to(device) for part in (self.weight, self.bias))
        lora = self.lora and (self.lora[0].to(device), self.lora[1].to(device), self.lora[2])
        module = self.module
        if module is not None and any(part.device != device for part in module.parameters()):
            module = copy.deepcopy(module).to(device)
        return replace(self, weight=weight, bias=bias, lora=lora, module=module)

    def shaped(self, raw: Tensor) -> Tensor:
        """softcap(scale * raw), for what the output layer gives."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class Loss:
    """A sum and its count; a training loop divides once per optimizer step.

    `metrics` are sums over scored tokens too (nats unless named otherwise).
    """

    sum: Tensor  # [] differentiable
    count: Tensor  # [] int64
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """sum / count, the token mean of this batch alone; with weights, sum / their sum; 0 if nothing counts."""
        if "weight" in self.metrics:
            weight = self.metrics["weight"].to(self.sum.dtype).to(self.sum.device)
            return self.sum / torch.where(weight > 0, weight, 1.0)
        return self.sum / self.count.clamp(min=1)


@dataclass(frozen=True)
class Figure:
    """One measured quantity: made where it is measured, and unchanged in every file, table and plot.

    Without a value, `reason` says why there is none; with one, why it has no interval.
    """

    key: str  # its name in evaluation.json and summary.json
    value: float | None = None
    low: float | None = None  # 95 % interval by resampling prompts
    high: float | None = None
    n: int | None = None  # prompts
    reason: str = ""
    label: str = ""
    unit: str = ""  # "nats per token"; a "share" of 1 is printed in percent
    better: Literal["up", "down", ""] = ""
    meaning: str = ""  # one sentence for the page
    place: Literal["headline", "result", "behaviour", "cost"] = "result"  # where the page shows it
    floor: float | None = None  # what an answer that knows nothing reaches
    floor_of: str = ""  # that answer: "the prompt copied"
    pairs: tuple[tuple[float, float], ...] = ()  # (numerator, denominator) of each prompt; not stored
    floors: tuple[float, ...] = ()  # the floor's numerators, beside `pairs`; not stored
    shape: Callable[[Any], Any] | None = None  # applied to the ratio (exp for a perplexity); not stored
    counts: tuple[tuple[float, ...], ...] = ()  # of each prompt, where the value is no ratio; not stored
    statistic: Callable[[Any], Any] | None = None  # the value of summed counts [draws, k]; not stored

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the interval, or None where it was not measured."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    def above(self, trivial: Mapping[str, Sequence[float]]) -> Figure:
        """The figure with its floor: the best of these answers' numerators, one for each of `pairs`."""
        if not self.pairs:
            return self
        name, best = max(trivial.items(), key=lambda one: sum(one[1]))
        total = sum(bottom for _, bottom in self.pairs)
        return replace(self, floor=sum(best) / total, floor_of=name, floors=tuple(best))

    def stored(self) -> dict[str, Any]:
        """Every field that a file keeps; `Figure(**stored)` is the figure again, without its prompts."""
        unstored = ("pairs", "floors", "shape", "counts", "statistic")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in unstored}


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
