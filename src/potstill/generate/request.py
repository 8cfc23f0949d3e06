"""What an engine is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from potstill.generate.sampling import Sampling
from potstill.signals.topk import TopK
from potstill.store.artifacts import key_of


@dataclass(frozen=True)
class Completion:
    """Sample `sample` of prompt `index`. `ids` leaves the prompt out and keeps the stop id.

    What they were drawn from, where a request keeps it: `states` [len(ids), H], final hidden states, or the `likeliest`
    ids at temperature 1, of an engine that shows no states.
    """

    index: int
    sample: int
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    states: Tensor | None = field(default=None, compare=False)
    likeliest: TopK | None = field(default=None, compare=False)


@dataclass(frozen=True)
class GenerationProgress:
    """Finished rows of those to write, ids written so far, seconds since the start."""

    done: int
    total: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Request:
    """Prompts to complete, `samples` times each.

    Args:
        teacher: `teacher.loaded()` returns its model and tokenizer and loads the weights on the first call.
        prompts: token ids.
        stop_ids: ids that end a completion.
        pad_id: id that fills up shorter prompts.
        seed: draws depend on seed, the prompt's ids and sample alone.
        batch_rows: most completions in flight at once.
        vocabulary: number of ids that may be written; None for all rows of the head.
        unused: ids below it that are no token, and are never written.
        skip: (prompt, sample) pairs that exist already; the draws of the others stay as they are.
        on_progress: called after every step.
        should_stop: asked before every step; once true, unfinished rows are dropped.
        keep: also give back the final hidden states that ids were drawn from.
        likeliest: also give back so many of the likeliest ids at temperature 1, with what is drawn from (vllm).
        settings: what the text depends on besides teacher and prompts, for an engine that has it already.
        journal: the file that answers are written to; workers of an engine append to files of their own beside it.
    """

    teacher: Any
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    stop_ids: Collection[int]
    pad_id: int
    seed: int
    batch_rows: int
    vocabulary: int | None = None
    unused: Collection[int] = ()
    samples: int = 1
    skip: Collection[tuple[int, int]] = ()
    on_progress: Callable[[GenerationProgress], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    keep: bool = False
    likeliest: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    journal: Path | None = None


def digest_of(ids: Sequence[int]) -> str:
    """What identifies a prompt's ids in files of answers."""
    return key_of("prompt", {"ids": list(ids)})[:32]
