"""Examples as tensors. The shift between a logit and its target is made here and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from potstill.types import Batch, Example, Reading


def collate(
    examples: Sequence[Example],
    *,
    pad_id: int,
    device: torch.device | str | None = None,
    packed: bool = False,
) -> Batch:
    """Make a batch of right-padded rows, or with `packed` of one row that joins them without padding.

    predicts[b, i] = scored[b, i + 1]: the logits at i are scored against token i + 1. Masks come from
    lengths, so a token of the text may equal `pad_id`.

    Where examples carry the teacher's reading, the batch holds both.

    Raises:
        ValueError: no example; the teacher's reading is missing or scores another number of tokens; as many
            log-probabilities as scored tokens are needed and others are there; a row waits for its answer.
    """
    if not examples:
        raise ValueError("a batch needs at least one example")
    if waiting := next((example.id for example in examples if example.room), None):
        raise ValueError(f"row {waiting} has no answer yet: the student is to write it first")
    rows = [examples] if packed else [[example] for example in examples]
    input_ids = _padded([[i for example in row for i in example.input_ids] for row in rows], pad_id)
    # An example's first token is never scored, so no example predicts the next one's start.
    scored = _padded([[mark for example in row for mark in (False, *example.scored[1:])] for row in rows], 0)
    positions = _padded([[i for example in row for i in range(len(example.input_ids))] for row in rows], -1)
    of_token = [example for example in examples for mark in example.scored[1:] if mark]  # [N]
    weights = teacher = None
    if any(example.weight != 1.0 for example in examples):
        weights = torch.tensor([example.weight for example in of_token], dtype=torch.float32)
    if any(example.reading is not None for example in examples):
        # Id 0 pads, because every vocabulary has it.
        teacher = collate([_as_teacher_reads(example) for example in examples], pad_id=0, packed=packed)
    batch = Batch(
        input_ids=input_ids,
        attention_mask=(positions >= 0).long(),
        # Repeating the last position keeps learned position tables in range.
        position_ids=torch.where(positions < 0, positions.amax(1, keepdim=True), positions),
        predicts=scored.roll(-1, dims=1),
        targets=input_ids[scored],
        row_ids=tuple(example.id for example in examples),
        asked_by=tuple(example.asked_by for example in examples),
        domains=tuple(example.domain for example in examples),
        hard=torch.tensor([example.origin != "student" for example in of_token], dtype=torch.bool),
        weights=weights,
        student_lp=_when_drawn(examples, "student_lp"),
        teacher_lp=_when_drawn(examples, "teacher_lp"),
        packed=packed,
        teacher=teacher,
    )
    return batch if device is None else batch.to(device)


def rows_of(batch: Batch) -> list[Batch]:
    """Each row, or example of a packed batch, as a batch of its own without padding; for a teacher to read."""
    if batch.packed:
        begins = [*(batch.position_ids[0] == 0).nonzero().flatten().tolist(), batch.input_ids.shape[1]]
        places = [(0, slice(begin, end)) for begin, end in itertools.pairwise(begins)]
    else:
        lengths = batch.attention_mask.sum(1).tolist()
        places = [(row, slice(0, length)) for row, length in enumerate(lengths)]
    begin, result = 0, list[Batch]()
    for number, (row, part) in enumerate(places):
        result.append(_row(batch, number, row, part, begin))
        begin += result[-1].count
    return result


def _row(batch: Batch, number: int, row: int, part: slice, begin: int) -> Batch:
    ids, predicts = batch.input_ids[row : row + 1, part], batch.predicts[row : row + 1, part]
    return Batch(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=batch.position_ids[row : row + 1, part],
        predicts=predicts,
        targets=ids[:, 1:][predicts[:, :-1]],
        row_ids=batch.row_ids[number : number + 1],
        hard=batch.hard[begin : begin + int(predicts.sum())],
        domains=batch.domains[number : number + 1],
    )


def readings(batch: Batch) -> list[Reading]:
    """The rows, or examples of a packed batch, as they went into `collate`; their first token is never scored."""
    return [
        Reading(tuple(row.input_ids[0].tolist()), (False, *row.predicts[0, :-1].tolist()))
        for row in rows_of(batch.to("cpu"))  # row by row a device would be waited for
    ]


def _when_drawn(examples: Sequence[Example], name: str) -> Tensor | None:
    """Log-probabilities of the scored tokens, [N]; None where no row has any."""
    values = [getattr(example, name) for example in examples]
    if all(value is None for value in values):
        return None
    for example, value in zip(examples, values, strict=True):
        if value is not None and len(value) != sum(example.scored[1:]):
            raise ValueError(
                f"row {example.id} scores {sum(example.scored[1:])} tokens, {name} has {len(value)}"
            )
    unknown = float("nan")
    rows = zip(examples, values, strict=True)
    return torch.tensor(
        [one for example, value in rows for one in (value or [unknown] * sum(example.scored[1:]))],
        dtype=torch.float32,
    )


def _as_teacher_reads(example: Example) -> Example:
    reading = example.reading
    if reading is None:
        raise ValueError(f"row {example.id} has no reading of the teacher, another row of its batch has one")
    read = replace(
        example,
        input_ids=reading.input_ids,
        scored=reading.scored,
        weight=1.0,
        reading=None,
        student_lp=None,
        teacher_lp=None,
    )
    if sum(example.scored[1:]) != sum(reading.scored[1:]):
        raise ValueError(
            f"row {example.id} scores {sum(example.scored[1:])} tokens, its reading of the teacher "
            f"{sum(reading.scored[1:])}: readings of different lengths are not aligned"
        )
    return read


def _padded(rows: Sequence[Sequence[int]], value: int, side: str = "right") -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], True, value, side)


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pad prompts on the left for generation: (input_ids, attention_mask, position_ids), each [B, S] int64.

    Positions count a row's own tokens, so a row's logits do not depend on its neighbours' lengths. The mask
    comes from lengths, so a prompt may hold the padding id.
    """
    if not all(rows):
        raise ValueError("generation needs at least one prompt token")
    positions = _padded([range(len(ids)) for ids in rows], -1, "left")
    mask = (positions >= 0).long()
    return _padded(rows, pad_id, "left").to(device), mask.to(device), positions.clamp(min=0).to(device)
