"""Text from a model in this process.

The decode loop is ours because a row's text must depend on what the caller asks alone: not on the
model's own generation settings, not on its training state, not on the rows that share its batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from potstill.errors import DataError, RecipeError
from potstill.generate.decode import Completion, Decoder, Row
from potstill.generate.sampling import Sampling, uniforms

__all__ = ["Completion", "Progress", "Sampling", "generate"]


@dataclass(frozen=True)
class Progress:
    """How far a generation is: finished rows of those to be written, ids written so far, seconds since the start."""

    done: int
    total: int
    tokens: int
    seconds: float


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Collection[int],
    pad_id: int,
    seed: int,
    batch_rows: int,
    vocabulary: int | None = None,
    samples: int = 1,
    skip: Collection[tuple[int, int]] = (),
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Completion]:
    """Complete each prompt `samples` times; rows are yielded as they finish, in no particular order.

    `vocabulary` counts the ids that may be written; the head's padded rows beyond are never drawn.
    `skip` names rows (prompt, sample) that exist already; the draws of the others stay as they are.
    At most `batch_rows` rows are in flight at once. `should_stop` is asked before every forward
    pass; once true, unfinished rows are dropped. Whenever a row is handed over, each module of the
    model is in the mode (training or evaluation) in which it was given.

    Raises:
        RecipeError: `batch_rows` or `samples` is below 1, or prompt and completion together exceed
            the model's positions.
        DataError: a prompt has no tokens.
        ModelError: while iterating: the logits are not finite, or the model keeps no cache.
    """
    _check(model, prompts, sampling, batch_rows, samples)
    # Longest prompts first: neighbours need little padding, and memory peaks near the start.
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    queue = deque(
        Row(index, sample, prompts[index], uniforms(seed, index, sample, sampling.max_new_tokens))
        for index in order
        for sample in range(samples)
        if (index, sample) not in skip
    )
    decoder = Decoder(model, queue, sampling, frozenset(stop_ids), pad_id, batch_rows, vocabulary)
    return _run(decoder, on_progress, should_stop)


def _run(
    decoder: Decoder, on_progress: Callable[[Progress], None] | None, should_stop: Callable[[], bool]
) -> Iterator[Completion]:
    total, done, start = len(decoder.queue), 0, time.monotonic()
    going = True
    while going:
        finished: list[Completion] = []
        # The caller may train between two rows, so the mode is held only while no one else looks.
        with _evaluating(decoder.model):
            while not finished and (going := decoder.busy and not should_stop()):
                finished = decoder.step()
                done += len(finished)
                if on_progress:
                    on_progress(Progress(done, total, decoder.tokens, time.monotonic() - start))
        yield from finished


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; and gradient checkpointing too, which acts in training mode only and drops the cache."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(
    model: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_rows: int, samples: int
) -> None:
    for name, value in (("batch_rows", batch_rows), ("samples", samples)):
        if value < 1:
            raise RecipeError(f"{name} cannot be {value}.", fix="Use 1 or more.", path=name, value=value)
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise DataError(
                f"Prompt {index} has no tokens.", fix="Give it a start token, or leave the row out."
            )
    limit = getattr(model.config, "max_position_embeddings", None)
    longest = max(map(len, prompts), default=0)
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise RecipeError(
            f"The longest prompt has {longest} tokens and max_new_tokens is {sampling.max_new_tokens}: "
            f"together more than the model's {limit} positions.",
            fix="Lower max_new_tokens, or leave long prompts out.",
            path="max_new_tokens",
            value=sampling.max_new_tokens,
        )
