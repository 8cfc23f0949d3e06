"""What the student wrote as examples, and examples as micro-batches of their true lengths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from potstill.data.batch import collate
from potstill.data.plan import by_length
from potstill.devices import ranks
from potstill.generate.request import Completion
from potstill.types import Batch, Example, Reading, Sampler


def waits(example: Example) -> bool:
    """Whether the student may answer it: a row that fills up another process's step has nothing to answer."""
    return example.count > 0 or example.room > 0


def seed_of(seed: int, step: int, row: str) -> int:
    """The seed of a row's draws: of the training's, the step and the row, whoever writes it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{row}".encode()).digest()[:8], "big")


def rollout(example: Example, completion: Completion, *, name: str, version: int) -> Example:
    """The prompt of `example` with what the student wrote behind it, every token of that scored."""
    ids, scored = _behind(example.prompt, completion.ids)
    reading = example.reading
    if reading is not None:
        reading = Reading(*_behind(reading.prompt, completion.ids))
    return replace(
        example,
        id=name,
        input_ids=ids,
        scored=scored,
        origin="student",
        part_of=example.row_id,
        answers=example.id,
        reading=reading,
        version=version,
        student_lp=None,
        teacher_lp=None,
        truncated=completion.finish == "length",
        room=0,
    )


def _behind(prompt: Sequence[int], written: Sequence[int]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    return (*prompt, *written), (False,) * len(prompt) + (True,) * len(written)


def batches(sampler: Sampler, rows: Sequence[Example], spare: Example) -> Iterator[Batch]:
    """Cut this process's rows by their true lengths; every process yields as many batches, with `spare` rows."""
    lengths = [row.width for row in rows]
    cut = by_length(lengths, sampler.micro_batch_tokens, longest_first=True, packing=sampler.packed)
    micros = [[rows[index] for index in micro] for micro in cut]
    # Of another name than the rollout that it may be, of which a teacher's signal may be kept.
    micros += [[replace(spare.silent(), id="no row")]] * (ranks.highest(len(micros)) - len(micros))
    for micro in micros:
        yield collate(micro, pad_id=sampler.pad_id, packed=sampler.packed)
