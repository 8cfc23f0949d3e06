"""Decoding: one forward pass at a time over a batch whose free places are refilled from a queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data.batch import left_pad
from potstill.errors import ModelError
from potstill.generate import kv
from potstill.generate.request import Completion
from potstill.generate.sampling import NOT_FINITE, Sampling, choose
from potstill.models import anatomy

# Prompts need a forward pass of their own, so places are refilled a quarter of a batch at a time.
_REFILL_SHARE = 4


@dataclass(frozen=True)
class Pending:
    """A completion that is not finished."""

    index: int
    sample: int
    prompt: Sequence[int]
    uniforms: np.ndarray  # [max_new_tokens], one number a draw
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(
        default_factory=list
    )  # [H] each, that the ids were drawn from, where they are kept


@dataclass
class InFlight:
    """Rows in flight. The cache holds all their ids but the last one."""

    rows: list[Pending]
    cache: Any
    mask: Tensor  # [B, S] int64, 1 where the cache holds a token

    def keep(self, places: list[int]) -> None:
        """Drop every row but these."""
        if len(places) < len(self.rows):
            chosen = torch.tensor(places, device=self.mask.device)
            kv.select(self.cache, chosen)
            self.mask = self.mask[chosen]
            self.rows = [self.rows[place] for place in places]

    def join(self, other: InFlight) -> None:
        """Add the rows of another batch; columns that held only padding are dropped."""
        length = int(torch.cat([self.mask.sum(1), other.mask.sum(1)]).max())
        kv.join(self.cache, other.cache, length)
        self.mask = torch.cat([kv.fit(self.mask, length, 1), kv.fit(other.mask, length, 1)])
        self.rows = self.rows + other.rows


@dataclass
class Decoder:
    """A queue of rows and the rows in flight. The model must be in evaluation mode."""

    model: Any
    queue: deque[Pending]
    sampling: Sampling
    stop_ids: frozenset[int]
    pad_id: int
    batch_rows: int  # most rows in flight
    vocabulary: int | None
    unused: tuple[int, ...] = ()  # ids below it that are no token
    keep: bool = False  # the final hidden state that each id was drawn from
    batch: InFlight | None = None
    tokens: int = 0

    @property
    def busy(self) -> bool:
        """Whether any row is unfinished."""
        return bool(self.queue or self.batch)

    @torch.no_grad()
    def step(self) -> list[Completion]:
        """Run one forward pass: rows of the queue get their first id, or all rows in flight their next.

        Returns:
            the completions that it finished.

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

    @torch.no_grad()
    def idle(self) -> list[Completion]:
        """Run one forward pass that other processes need, and finish nothing."""
        device = next(self.model.parameters()).device
        ids, mask, positions = left_pad([[self.pad_id]], self.pad_id, device)
        self._forward(ids, mask, positions, None)
        return []

    def _has_room(self, batch: InFlight) -> bool:
        free = self.batch_rows - len(batch.rows)
        enough = max(1, min(self.batch_rows // _REFILL_SHARE, len(self.queue)))
        return bool(self.queue) and free >= enough and kv.joinable(batch.cache)

    def _admit(self) -> tuple[InFlight | None, list[Completion]]:
        in_flight = len(self.batch.rows) if self.batch else 0
        rows = [self.queue.popleft() for _ in range(min(self.batch_rows - in_flight, len(self.queue)))]
        # Samples of one prompt are neighbours in the queue and share its pass.
        prompts = {row.index: row.prompt for row in rows}
        device = next(self.model.parameters()).device
        ids, mask, positions = left_pad(list(prompts.values()), self.pad_id, device)
        logits, states, cache = self._forward(ids, mask, positions, None)
        places = {index: place for place, index in enumerate(prompts)}
        chosen = torch.tensor([places[row.index] for row in rows], device=mask.device)
        if len(prompts) < len(rows):
            kv.select(cache, chosen)
        kept = None if states is None else states[chosen]
        return self._write(InFlight(rows, cache, mask[chosen]), logits[chosen], kept)

    def _extend(self, batch: InFlight) -> tuple[InFlight | None, list[Completion]]:
        ids = torch.tensor([row.ids[-1:] for row in batch.rows], device=batch.mask.device)
        positions = batch.mask.sum(1, keepdim=True)
        batch.mask = torch.cat([batch.mask, torch.ones_like(ids)], 1)
        logits, states, batch.cache = self._forward(ids, batch.mask, positions, batch.cache)
        return self._write(batch, logits, states)

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any
    ) -> tuple[Tensor, Tensor | None, Any]:
        """Run the model: the last position's logits [B, V] without padded head rows, the states [B, H] that they
        are of where these are kept, and the cache."""
        watching: AbstractContextManager[list[Tensor]]
        watching = anatomy.read_by_head(self.model) if self.keep else nullcontext([])
        with watching as states:
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
        logits = output.logits[:, -1, : self.vocabulary]
        if self.unused:
            none = torch.tensor(self.unused, device=logits.device)
            logits = logits.index_fill(1, none, -torch.inf)
        return logits, states[-1][:, -1] if states else None, output.past_key_values

    def _write(
        self, batch: InFlight, logits: Tensor, states: Tensor | None
    ) -> tuple[InFlight | None, list[Completion]]:
        """Give each row its next id and drop the rows that it finishes."""
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
            if states is not None:
                row.states.append(states[place])
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


def _completion(row: Pending, finish: Literal["stop", "length"]) -> Completion:
    states = torch.stack(row.states).cpu() if row.states else None
    return Completion(row.index, row.sample, tuple(row.ids), finish, states)
