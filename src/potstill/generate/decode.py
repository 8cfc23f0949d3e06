"""One forward pass at a time over a batch whose places are refilled from a queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.errors import ModelError
from potstill.generate import kv
from potstill.generate.sampling import NOT_FINITE, Sampling, choose

# Taking rows in costs a forward pass of its own, so places are refilled a quarter of a batch at a time.
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
class Row:
    """A completion on its way."""

    index: int
    sample: int
    prompt: Sequence[int]
    uniforms: np.ndarray  # [max_new_tokens], one number a draw
    ids: list[int] = field(default_factory=list)


@dataclass
class Batch:
    """Rows in flight. The cache has seen all their ids but the last one."""

    rows: list[Row]
    cache: Any
    mask: Tensor  # [B, S] int64, 1 where the cache holds a token

    def keep(self, places: list[int]) -> None:
        """Let go of every row but these."""
        if len(places) < len(self.rows):
            chosen = torch.tensor(places, device=self.mask.device)
            kv.select(self.cache, chosen)
            self.mask = self.mask[chosen]
            self.rows = [self.rows[place] for place in places]

    def join(self, other: Batch) -> None:
        """Take in the rows of another batch; columns that held only padding are dropped."""
        length = int(torch.cat([self.mask.sum(1), other.mask.sum(1)]).max())
        kv.join(self.cache, other.cache, length)
        self.mask = torch.cat([kv.fit(self.mask, length, 1), kv.fit(other.mask, length, 1)])
        self.rows = self.rows + other.rows


@dataclass
class Decoder:
    """A queue, the rows in flight, and how both go on. The model must be in evaluation mode."""

    model: Any
    queue: deque[Row]
    sampling: Sampling
    stop_ids: frozenset[int]
    pad_id: int
    batch_rows: int
    vocabulary: int | None
    batch: Batch | None = None
    tokens: int = 0

    @property
    def busy(self) -> bool:
        """Whether any row is unfinished."""
        return bool(self.queue or self.batch)

    @torch.no_grad()
    def step(self) -> list[Completion]:
        """One forward pass: rows of the queue get their first id, or all rows in flight their next.

        Returns the rows it finished.

        Raises:
            ModelError: the logits are not finite, or the model keeps no cache.
        """
        if self.batch is None:
            self.batch, finished = self._admit()
        elif self._has_room(self.batch):
            admitted, finished = self._admit()
            if admitted is not None:
                self.batch.join(admitted)
        else:
            self.batch, finished = self._extend(self.batch)
        return finished

    def _has_room(self, batch: Batch) -> bool:
        free = self.batch_rows - len(batch.rows)
        worth_a_pass = max(1, min(self.batch_rows // _REFILL_SHARE, len(self.queue)))
        return bool(self.queue) and free >= worth_a_pass and kv.joinable(batch.cache)

    def _admit(self) -> tuple[Batch | None, list[Completion]]:
        in_flight = len(self.batch.rows) if self.batch else 0
        rows = [self.queue.popleft() for _ in range(min(self.batch_rows - in_flight, len(self.queue)))]
        # Samples of one prompt stand side by side in the queue and share its pass.
        prompts = {row.index: row.prompt for row in rows}
        ids, mask = _left_padded(list(prompts.values()), self.pad_id, next(self.model.parameters()).device)
        logits, cache = self._forward(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), None)
        places = {index: place for place, index in enumerate(prompts)}
        chosen = torch.tensor([places[row.index] for row in rows], device=mask.device)
        if len(prompts) < len(rows):
            kv.select(cache, chosen)
        return self._write(Batch(rows, cache, mask[chosen]), logits[chosen])

    def _extend(self, batch: Batch) -> tuple[Batch | None, list[Completion]]:
        ids = torch.tensor([row.ids[-1:] for row in batch.rows], device=batch.mask.device)
        positions = batch.mask.sum(1, keepdim=True)
        batch.mask = torch.cat([batch.mask, torch.ones_like(ids)], 1)
        logits, batch.cache = self._forward(ids, batch.mask, positions, batch.cache)
        return self._write(batch, logits)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """The last position's logits [B, V] without padded head rows, and the cache."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if output.past_key_values is None:
            raise ModelError(
                f"{type(self.model).__name__} keeps no key-value cache.",
                fix="Use a model that supports use_cache.",
            )
        return output.logits[:, -1, : self.vocabulary], output.past_key_values

    def _write(self, batch: Batch, logits: Tensor) -> tuple[Batch | None, list[Completion]]:
        """Give each row its next id; finished rows leave."""
        draws = torch.tensor([row.uniforms[len(row.ids)] for row in batch.rows], device=logits.device)
        kept: list[int] = []
        finished: list[Completion] = []
        for place, token in enumerate(choose(logits, draws, self.sampling).tolist()):
            row = batch.rows[place]
            if token == NOT_FINITE:
                raise ModelError(
                    f"The model's logits are not finite at token {len(row.ids)} after prompt {row.index}.",
                    fix="Load the model in bfloat16 or float32, and check its weights.",
                )
            row.ids.append(token)
            if token in self.stop_ids:
                finished.append(_completion(row, "stop"))
            elif len(row.ids) == self.sampling.max_new_tokens:
                finished.append(_completion(row, "length"))
            else:
                kept.append(place)
        self.tokens += len(batch.rows)
        if not kept:
            return None, finished
        batch.keep(kept)
        return batch, finished


def _completion(row: Row, finish: Literal["stop", "length"]) -> Completion:
    return Completion(row.index, row.sample, tuple(row.ids), finish, len(row.prompt))


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, S]; the mask comes from lengths, since a prompt may hold the padding id."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
