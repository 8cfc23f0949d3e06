"""Properties of rows and machine that decide about a run: stop tokens, lengths, memory."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from potstill.check.report import Item
from potstill.data.examples import describe_lengths
from potstill.stages._context import Setup
from potstill.types import Example


def stop_tokens(setup: Setup, rows: Sequence[Example]) -> Item:
    """Check that every answer's end token is scored, so that the student learns to stop."""
    stops = setup.readers.student.stop_ids
    if not stops:
        return Item("stop token", False, "the template ends no turn and the tokenizer has no end token")
    names = setup.readers.student.tokenizer.convert_ids_to_tokens(list(stops))
    detail = f"answers end with {', '.join(names)}"
    if setup.readers.student.pad_id in stops:
        detail += "; it is the padding token too, which is safe: masks come from lengths"
    examples = [row for row in rows if any(row.scored)]
    if open_ended := [row.id for row in examples if not _ends(row, stops)]:
        detail += f"; {len(open_ended)} rows never score it, first {open_ended[0]}"
    elif examples:
        last = setup.readers.student.tokenizer.convert_ids_to_tokens(list(examples[0].input_ids[-5:]))
        detail += f"; last tokens of {examples[0].id}: {' '.join(last)}"
    return Item("stop token", not open_ended, detail)


def _ends(row: Example, stops: Sequence[int]) -> bool:
    return any(scored and token in stops for token, scored in zip(row.input_ids, row.scored, strict=True))


def lengths(setup: Setup, all_lengths: Sequence[int], new_tokens: int) -> Item:
    """Count the rows that max_length drops, and say which lengths would keep them."""
    if not all_lengths:
        return Item("lengths", False, "no row is left")
    full = [length + new_tokens for length in all_lengths]
    lost = sum(length > setup.max_length for length in full)
    detail = f"{lost} of {len(full)} rows are longer than {setup.max_length}; {describe_lengths(full)}"
    return Item("lengths", lost < len(full), detail)


def memory(
    setup: Setup, teacher_parameters: int, teacher_dtype: torch.dtype, student_parameters: int
) -> Item:
    """Estimate the least memory of training: weights, gradients, AdamW's two moments, and the teacher.

    Activations come on top; they grow with micro_batch_tokens.
    """
    teacher = teacher_parameters * teacher_dtype.itemsize
    student = student_parameters * 4 * 4
    if setup.device.type == "cuda":
        free = torch.cuda.mem_get_info(setup.device)[0]
    else:
        free = psutil.virtual_memory().available
    detail = (
        f"teacher {teacher / 1e9:.2f} GB + student with gradients and AdamW {student / 1e9:.2f} GB, "
        f"{free / 1e9:.1f} GB free on {setup.device.type}"
    )
    return Item("memory", teacher + student < free, detail)
