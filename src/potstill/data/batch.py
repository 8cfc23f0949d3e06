"""Padded tensors. The shift between a logit and its target is made here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.types import Batch, Example


def collate(
    examples: Sequence[Example],
    *,
    pad_id: int,
    device: torch.device | str | None = None,
    multiple_of: int = 1,
    packed: bool = False,
) -> Batch:
    """Right-padded rows as a batch; `packed` lays them end to end in one row instead, without padding.

    predicts[b, i] = scored[b, i + 1]: the logits at i are scored against token i + 1. Masks come from
    lengths, so a token of the text may equal `pad_id`. Padding repeats the last position, which keeps
    learned position tables in range.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    batch = _pack(examples) if packed else _pad(examples, pad_id, multiple_of)
    if any(example.weight != 1.0 for example in examples):
        each = [example.weight for example in examples for mark in example.scored[1:] if mark]
        batch = replace(batch, weights=torch.tensor(each, dtype=torch.float32))
    return batch if device is None else batch.to(device)


def _pad(examples: Sequence[Example], pad_id: int, multiple_of: int) -> Batch:
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    size = -(-int(lengths.max()) // multiple_of) * multiple_of
    input_ids = torch.full((len(examples), size), pad_id, dtype=torch.int64)
    scored = torch.zeros((len(examples), size), dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids, dtype=torch.int64)
        scored[row, : len(example.scored)] = torch.tensor(example.scored, dtype=torch.bool)
    places = torch.arange(size)
    predicts = torch.zeros_like(scored)
    predicts[:, :-1] = scored[:, 1:]
    written = torch.tensor([example.origin != "student" for example in examples])
    return Batch(
        input_ids=input_ids,
        attention_mask=(places < lengths[:, None]).long(),
        position_ids=torch.minimum(places, lengths[:, None] - 1),
        predicts=predicts,
        targets=input_ids[:, 1:][predicts[:, :-1]],
        row_ids=tuple(example.id for example in examples),
        hard=written[:, None].expand_as(predicts)[predicts],
    )


def _pack(examples: Sequence[Example]) -> Batch:
    input_ids = torch.tensor([[i for example in examples for i in example.input_ids]])
    # An example's first token is never scored, so no example predicts the next one's start.
    scored = [mark for example in examples for mark in (False, *example.scored[1:])]
    predicts = torch.tensor([[*scored[1:], False]])
    written = [example.origin != "student" for example in examples for _ in example.input_ids]
    return Batch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        position_ids=torch.cat([torch.arange(len(example.input_ids)) for example in examples])[None],
        predicts=predicts,
        targets=input_ids[:, 1:][predicts[:, :-1]],
        row_ids=tuple(example.id for example in examples),
        hard=torch.tensor([written])[predicts],
        packed=True,
    )


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(input_ids, attention_mask, position_ids), each [B, S] int64, for batched generation only.

    Positions count a row's own tokens, so a row's logits do not depend on its neighbours' lengths.
    """
    size = max(len(ids) for ids in rows)
    input_ids = torch.full((len(rows), size), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        if not ids:
            raise ValueError("generation needs at least one prompt token")
        input_ids[row, size - len(ids) :] = torch.tensor(ids, dtype=torch.int64)
        mask[row, size - len(ids) :] = 1
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    return input_ids.to(device), mask.to(device), position_ids.to(device)
