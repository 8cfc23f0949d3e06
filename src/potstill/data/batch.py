"""Examples as tensors. The shift between a logit and its target is made here and nowhere else."""

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
    packed: bool = False,
) -> Batch:
    """Make a batch of right-padded rows, or with `packed` of one row that joins them without padding.

    predicts[b, i] = scored[b, i + 1]: the logits at i are scored against token i + 1. Masks come from
    lengths, so a token of the text may equal `pad_id`. Padding repeats the last position, which keeps
    learned position tables in range.

    Where examples carry the teacher's reading, the batch holds both.

    Raises:
        ValueError: no example, or the teacher's reading is missing or scores another number of tokens.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    batch = _pack(examples) if packed else _pad(examples, pad_id)
    if any(example.weight != 1.0 for example in examples):
        each = [example.weight for example in examples for mark in example.scored[1:] if mark]
        batch = replace(batch, weights=torch.tensor(each, dtype=torch.float32))
    if any(example.reading is not None for example in examples):
        read = [_as_teacher_reads(example) for example in examples]
        # Id 0 pads, because every vocabulary has it.
        batch = replace(batch, teacher=collate(read, pad_id=0, packed=packed))
    return batch if device is None else batch.to(device)


def _as_teacher_reads(example: Example) -> Example:
    reading = example.reading
    if reading is None:
        raise ValueError(f"row {example.id} has no reading of the teacher, another row of its batch has one")
    read = replace(example, input_ids=reading.input_ids, scored=reading.scored, weight=1.0, reading=None)
    if sum(example.scored[1:]) != sum(reading.scored[1:]):
        raise ValueError(
            f"row {example.id} scores {sum(example.scored[1:])} tokens, its reading of the teacher "
            f"{sum(reading.scored[1:])}: readings of different lengths are not aligned"
        )
    return read


def _pad(examples: Sequence[Example], pad_id: int) -> Batch:
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    size = int(lengths.max())
    input_ids = torch.full((len(examples), size), pad_id, dtype=torch.int64)
    scored = torch.zeros((len(examples), size), dtype=torch.bool)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids, dtype=torch.int64)
        scored[row, : len(example.scored)] = torch.tensor(example.scored, dtype=torch.bool)
    columns = torch.arange(size)
    predicts = torch.zeros_like(scored)
    predicts[:, :-1] = scored[:, 1:]
    hard = torch.tensor([example.origin != "student" for example in examples])
    return Batch(
        input_ids=input_ids,
        attention_mask=(columns < lengths[:, None]).long(),
        position_ids=torch.minimum(columns, lengths[:, None] - 1),
        predicts=predicts,
        targets=input_ids[:, 1:][predicts[:, :-1]],
        row_ids=tuple(example.id for example in examples),
        hard=hard[:, None].expand_as(predicts)[predicts],
    )


def _pack(examples: Sequence[Example]) -> Batch:
    input_ids = torch.tensor([[i for example in examples for i in example.input_ids]])
    # An example's first token is never scored, so no example predicts the next one's start.
    scored = [mark for example in examples for mark in (False, *example.scored[1:])]
    predicts = torch.tensor([[*scored[1:], False]])
    hard = [example.origin != "student" for example in examples for _ in example.input_ids]
    return Batch(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        position_ids=torch.cat([torch.arange(len(example.input_ids)) for example in examples])[None],
        predicts=predicts,
        targets=input_ids[:, 1:][predicts[:, :-1]],
        row_ids=tuple(example.id for example in examples),
        hard=torch.tensor([hard])[predicts],
        packed=True,
    )


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad prompts on the left for generation: (input_ids, attention_mask, position_ids), each [B, S] int64.

    Positions count a row's own tokens, so a row's logits do not depend on its neighbours' lengths. The mask
    comes from lengths, so a prompt may hold the padding id.
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
