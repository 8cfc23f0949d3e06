"""Text from a model in this process: one decode loop over a batch whose places are refilled.

The loop is ours because a row's text must depend on the recipe alone: not on the model's own
generation settings, not on its training state, not on the rows that share its batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from potstill.errors import DataError, ModelError, RecipeError
from potstill.generate import kv
from potstill.generate.sampling import NOT_FINITE, Sampling, choose, uniforms

# Admitting rows costs a forward pass of its own, so places are refilled a quarter of a batch at a time.
_REFILL_SHARE = 4


@dataclass(frozen=True)
class Completion:
    """What sample `sample` of prompt `index` became. `ids` leaves the prompt out and keeps the stop id."""

    index: int
    sample: int
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    prompt_length: int


@dataclass(frozen=True)
class Progress:
    """How far a generation is: finished rows of all rows, ids written so far, seconds since the start."""

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
    on_progress: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Completion]:
    """Complete each prompt `samples` times; rows are yielded as they finish, in no particular order.

    `vocabulary` counts the ids that may be written; the head's padded rows beyond are never drawn.
    `skip` names (prompt, sample) pairs that are written already; it changes no other row.
    At most `batch_rows` rows are in memory at once. `should_stop` is asked before every forward
    pass: once true, unfinished rows are dropped. Whenever a row is yielded the model is in the mode
    (training, evaluation) in which it was given.

    Raises:
        RecipeError: batch_rows or samples is below 1, or prompt and completion exceed the model's positions.
        DataError: a prompt is empty.
        ModelError: the logits are not finite, or the model keeps no cache.
    """
    _check(model, prompts, sampling, batch_rows, samples)
    queue = _queue(prompts, sampling, samples, seed, frozenset(skip))
    decoder = _Decoder(model, queue, sampling, frozenset(stop_ids), pad_id, batch_rows, vocabulary)
    total, done, start = len(queue), 0, time.monotonic()
    running = True
    while running:
        finished: list[Completion] = []
        # The caller may train between two rows, so the mode is held only while no one else looks.
        with _evaluating(model):
            while not finished and (running := decoder.busy and not should_stop()):
                finished = decoder.step()
                done += len(finished)
                on_progress(Progress(done, total, decoder.tokens, time.monotonic() - start))
        yield from finished


@dataclass(frozen=True)
class _Row:
    index: int
    sample: int
    prompt: Sequence[int]
    uniforms: np.ndarray  # [max_new_tokens]
    ids: list[int] = field(default_factory=list)


@dataclass
class _Batch:
    """Rows in flight: all that the cache has seen of them, and one more id each."""

    rows: list[_Row]
    cache: Any
    mask: Tensor  # [B, S] int64, 1 where the cache holds a token

    def keep(self, places: list[int]) -> None:
        """Let go of every row but these."""
        if len(places) < len(self.rows):
            chosen = torch.tensor(places, device=self.mask.device)
            kv.select(self.cache, chosen)
            self.mask = self.mask[chosen]
            self.rows = [self.rows[place] for place in places]

    def join(self, other: _Batch) -> None:
        """Take the rows of another batch in; columns that hold padding only are dropped."""
        length = int(torch.cat([self.mask.sum(1), other.mask.sum(1)]).max())
        kv.join(self.cache, other.cache, length)
        self.mask = torch.cat([kv.fit(self.mask, length, 1), kv.fit(other.mask, length, 1)])
        self.rows = self.rows + other.rows


@dataclass
class _Decoder:
    model: Any
    queue: deque[_Row]
    sampling: Sampling
    stop_ids: frozenset[int]
    pad_id: int
    batch_rows: int
    vocabulary: int | None
    batch: _Batch | None = None
    tokens: int = 0

    @property
    def busy(self) -> bool:
        return bool(self.queue or self.batch)

    @torch.no_grad()
    def step(self) -> list[Completion]:
        """One forward pass: rows from the queue get their first id, or all running rows their next."""
        free = min(self.batch_rows - (len(self.batch.rows) if self.batch else 0), len(self.queue))
        if self.batch is None:
            self.batch, finished = self._admit(free)
        elif free >= max(1, min(self.batch_rows // _REFILL_SHARE, len(self.queue))) and kv.joinable(self.batch.cache):
            admitted, finished = self._admit(free)
            if admitted:
                self.batch.join(admitted)
        else:
            self.batch, finished = self._decode(self.batch)
        return finished

    def _admit(self, count: int) -> tuple[_Batch | None, list[Completion]]:
        rows = [self.queue.popleft() for _ in range(count)]
        # Samples of one prompt stand side by side in the queue and share its pass.
        places = {row.index: place for place, row in enumerate({row.index: row for row in rows}.values())}
        prompts = list({row.index: row.prompt for row in rows}.values())
        device = self._device()
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            mask[place, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        logits, cache = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), None)
        chosen = torch.tensor([places[row.index] for row in rows], device=device)
        if len(prompts) < len(rows):
            kv.select(cache, chosen)
        return self._write(_Batch(rows, cache, mask[chosen]), logits[chosen])

    def _decode(self, batch: _Batch) -> tuple[_Batch | None, list[Completion]]:
        ids = torch.tensor([row.ids[-1:] for row in batch.rows], device=batch.mask.device)
        positions = batch.mask.sum(1, keepdim=True)
        batch.mask = torch.cat([batch.mask, torch.ones_like(ids)], 1)
        logits, _ = self._forward(ids, batch.mask, positions, batch.cache)
        return self._write(batch, logits)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if output.past_key_values is None:
            raise ModelError(f"{type(self.model).__name__} keeps no cache.", fix="Use a model that supports use_cache.")
        return output.logits[:, -1, : self.vocabulary], output.past_key_values

    def _write(self, batch: _Batch, logits: Tensor) -> tuple[_Batch | None, list[Completion]]:
        """Give each row its next id; finished rows leave."""
        draws = torch.tensor([row.uniforms[len(row.ids)] for row in batch.rows], device=logits.device)
        kept, finished = [], []
        for place, (row, id) in enumerate(
            zip(batch.rows, choose(logits, draws, self.sampling).tolist(), strict=True)
        ):
            if id == NOT_FINITE:
                raise ModelError(
                    f"The model's logits are not finite at token {len(row.ids)} after prompt {row.index}.",
                    fix="Load the model in bfloat16 or float32, and check its weights.",
                )
            row.ids.append(id)
            if id in self.stop_ids or len(row.ids) == self.sampling.max_new_tokens:
                finish = "stop" if id in self.stop_ids else "length"
                finished.append(Completion(row.index, row.sample, tuple(row.ids), finish, len(row.prompt)))
            else:
                kept.append(place)
        self.tokens += len(batch.rows)
        if not kept:
            return None, finished
        batch.keep(kept)
        return batch, finished

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _queue(
    prompts: Sequence[Sequence[int]], sampling: Sampling, samples: int, seed: int, skip: Collection[tuple[int, int]]
) -> deque[_Row]:
    """Longest prompts first: neighbours need little padding, and memory peaks at the start."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    return deque(
        _Row(index, sample, prompts[index], uniforms(seed, index, sample, sampling.max_new_tokens))
        for index in order
        for sample in range(samples)
        if (index, sample) not in skip
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; gradient checkpointing, which would drop the cache, is off outside training too."""
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
            raise DataError(f"Prompt {index} has no tokens.", fix="Give it a start token, or leave the row out.")
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
