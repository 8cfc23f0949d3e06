"""Examples as tensors of one size, as a model reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. Masks come from lengths, never from ids.

    `predicts[b, i]` says that the logits at position i are scored, against token i + 1.
    This shift is made once, in `data.batch`, for student, teacher and labels alike.
    """

    input_ids: Tensor  # [B, S] int64
    attention_mask: Tensor  # [B, S] int64
    position_ids: Tensor  # [B, S] int64
    predicts: Tensor  # [B, S] bool
    targets: Tensor  # [N] int64, row-major order of `predicts`
    row_ids: tuple[str, ...]
    hard: Tensor  # [N] bool: the token was written by data or teacher, so cross-entropy may use it
    weights: Tensor | None = None  # [N] float32: weight of each token's loss, 1 when absent
    student_lp: Tensor | None = None  # [N] float32, when the tokens were drawn; NaN where nobody asked
    teacher_lp: Tensor | None = None  # [N] float32, beside it
    packed: bool = False  # examples stand end to end; position_ids restart at 0 where one begins
    teacher: Batch | None = None  # the same rows and scored tokens as the teacher reads them
    asked_by: tuple[str, ...] = ()  # the example whose prompt each row answers
    domains: tuple[str | None, ...] = ()  # of each row, which of several teachers are asked about it

    @property
    def count(self) -> int:
        """N, the number of scored positions."""
        return int(self.targets.numel())

    @property
    def for_teacher(self) -> Batch:
        """The batch that a teacher is given: its own reading, or this one."""
        return self if self.teacher is None else self.teacher

    def example_counts(self) -> Tensor:
        """Count the scored tokens of each scored token's example, [N]."""
        _, owner, counts = torch.unique_consecutive(self.owners(), return_inverse=True, return_counts=True)
        return counts[owner]

    def owners(self) -> Tensor:
        """Index the example that each scored token belongs to, [N]; it counts rows, or packed examples."""
        row, place = self.predicts.nonzero(as_tuple=True)
        return ((self.position_ids[0] == 0).cumsum(0) - 1)[place] if self.packed else row

    def only(self, kept: Tensor) -> Batch:
        """The same rows with fewer scored tokens: those of `kept` [N] bool."""
        predicts = self.predicts.clone()
        predicts[self.predicts] = kept
        return replace(self, predicts=predicts, **self._of_tokens(kept))

    def rows(self, kept: Tensor) -> Batch:
        """The batch without some of its rows, or packed examples: those of `kept` [R] bool stay."""
        if self.packed:
            columns = kept[(self.position_ids[0] == 0).cumsum(0) - 1]
            part: tuple[Any, ...] = (slice(None), columns)
        else:
            longest = int(self.attention_mask[kept].sum(1).max()) if bool(kept.any()) else 0
            part = (kept, slice(0, longest))
        per_place = ("input_ids", "attention_mask", "position_ids", "predicts")
        per_row: dict[str, Any] = {
            name: tuple(
                value for value, stays in zip(getattr(self, name), kept.tolist(), strict=True) if stays
            )
            for name in ("row_ids", "asked_by", "domains")
            if getattr(self, name)
        }
        return replace(
            self,
            **dict[str, Any]((name, getattr(self, name)[part]) for name in per_place),
            **self._of_tokens(kept[self.owners()]),
            **per_row,
            teacher=None if self.teacher is None else self.teacher.rows(kept),
        )

    def _of_tokens(self, kept: Tensor) -> dict[str, Any]:
        """What is known of each scored token, of those of `kept` [N] bool."""
        per_token = ("targets", "hard", "weights", "student_lp", "teacher_lp")
        values = {name: getattr(self, name) for name in per_token}
        return {name: value[kept] for name, value in values.items() if value is not None}

    def row_of(self, position: int) -> str:
        """The id of the row that scored position 0 .. N-1 belongs to."""
        row, place = self.predicts.nonzero()[position].tolist()
        if self.packed:
            row = int((self.position_ids[0, : place + 1] == 0).sum()) - 1
        return self.row_ids[row]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        # Nobody waits for a copy to the CPU, which would be read before it is there.
        ahead = torch.device(device).type != "cpu"
        moved = {
            name: value.to(device) if isinstance(value, Batch) else value.to(device, non_blocking=ahead)
            for name, value in self.__dict__.items()
            if isinstance(value, Tensor | Batch)
        }
        return Batch(**(self.__dict__ | moved))


def places_in_answers(predicts: Tensor) -> Tensor:
    """Count, for each true position of `predicts` [B, S] or [S], its place in its answer, from 0.

    An answer is a run of neighbours; none crosses rows.
    """
    index = torch.arange(predicts.shape[-1], device=predicts.device).expand(predicts.shape)
    begins = predicts.clone()
    begins[..., 1:] &= ~predicts[..., :-1]
    return (index - torch.where(begins, index, 0).cummax(-1).values)[predicts]
