"""What rows and machine will do to a run: stop tokens, lengths, memory."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from potstill.check.report import Item
from potstill.data.examples import length_for
from potstill.runs.setup import Parts
from potstill.types import Example


def stop_tokens(parts: Parts, rows: Sequence[Example]) -> Item:
    """The token that ends an answer is scored, so that the student learns to stop."""
    stops = parts.student_templater.stop_ids
    if not stops:
        return Item("stop token", False, "the template ends no turn and the tokenizer has no end token")
    names = parts.tokenizer.convert_ids_to_tokens(list(stops))
    told = f"answers end with {', '.join(names)}"
    if parts.pad_id in stops:
        told += "; it is the padding token too, which is safe: masks come from lengths"
    answered = [row for row in rows if any(row.scored)]
    open_ended = [row.id for row in answered if not _ends(row, stops)]
    if open_ended:
        return Item(
            "stop token", False, f"{told}; {len(open_ended)} rows never score it, first {open_ended[0]}"
        )
    if answered:
        last = parts.tokenizer.convert_ids_to_tokens(list(answered[0].input_ids[-5:]))
        told += f"; last tokens of {answered[0].id}: {' '.join(last)}"
    return Item("stop token", True, told)


def _ends(row: Example, stops: Sequence[int]) -> bool:
    return any(scored and token in stops for token, scored in zip(row.input_ids, row.scored, strict=True))


def lengths(parts: Parts, all_lengths: Sequence[int], new_tokens: int) -> Item:
    """How many rows max_length drops, and what would keep them."""
    if not all_lengths:
        return Item("lengths", False, "no row is left")
    full = [length + new_tokens for length in all_lengths]
    lost = sum(length > parts.max_length for length in full)
    told = ", ".join(f"{share:.0%} of rows fit {length_for(full, share)}" for share in (0.5, 0.95, 1.0))
    return Item(
        "lengths", lost < len(full), f"{lost} of {len(full)} rows are longer than {parts.max_length}; {told}"
    )


def memory(parts: Parts, teacher_parameters: int, student_parameters: int) -> Item:
    """A floor for training on this machine: weights, gradients, AdamW's two moments, and the teacher.

    Activations come on top; they grow with micro_batch_tokens.
    """
    teacher = teacher_parameters * torch.empty((), dtype=parts.teacher.dtype).element_size()
    student = student_parameters * 4 * 4
    if parts.device.type == "cuda":
        free = torch.cuda.mem_get_info(parts.device)[0]
    else:
        free = psutil.virtual_memory().available
    told = (
        f"teacher {teacher / 1e9:.2f} GB + student with gradients and AdamW {student / 1e9:.2f} GB, "
        f"{free / 1e9:.1f} GB free on {parts.device.type}"
    )
    return Item("memory", teacher + student < free, told)
